"""FSDP: the joint model's parameters shared out among processes, and put together where they must be whole.

What is sharded is asked for in `TrainingArguments`, done by torch's native `fully_shard`, and undone for what runs
beside the training's own passes: evaluation, looks at the variance, checkpoints.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from gradvar.errors import GradvarError
from gradvar.masking.scores import Score, is_measured

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from gradvar.training.joint import JointModel

Sharding = Literal["full_shard", "shard_grad_op"]
"""``shard_grad_op`` keeps the layers whole from a forward pass to its backward pass, and so gathers them once."""
_KINDS: dict[Any, Sharding] = {
    "full_shard": "full_shard",
    "shard_grad_op": "shard_grad_op",
    True: "full_shard",
    False: "shard_grad_op",
}  # by the names, and by what transformers makes of them: whether layers are given back after their forward pass
_AS_IT_IS = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "state_dict_type": "FULL_STATE_DICT"}
_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")  # which treat every number by itself


def asked_for(args: TrainingArguments) -> Sharding | None:
    """Read the sharding that arguments ask for.

    Args:
        args: With ``fsdp`` as a name, a list of names, or true with ``reshard_after_forward`` in ``fsdp_config``.

    Returns:
        The sharding, or None.

    Raises:
        GradvarError: If it is none that can be had, or not here.
    """
    given: Any = args.fsdp
    if not given:
        return None
    named = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
    names = [str(getattr(name, "value", name)) for name in named if getattr(name, "value", name) != "auto_wrap"]
    config = args.fsdp_config if isinstance(args.fsdp_config, dict) else {}
    wanted = names[0] if names else config.get("reshard_after_forward", True)
    if len(names) > 1 or wanted not in _KINDS:
        what = " ".join(names) or wanted
        raise GradvarError(f"fsdp='{what}' is not supported: take full_shard, or shard_grad_op")
    for name, value in config.items():
        if name != "reshard_after_forward" and value and value != _AS_IT_IS.get(name):
            raise GradvarError(f"fsdp_config: '{name}' is not supported; of these, only 'reshard_after_forward' is")
    if _is_cpu(args):
        raise GradvarError(
            f"fsdp={_KINDS[wanted]} is not supported on CPU, where it would save nothing; leave it out, or take GPUs"
        )
    if args.world_size == 1:
        raise GradvarError(
            f"fsdp={_KINDS[wanted]} shares the model among processes, of which there is one; start it with "
            "torchrun --nproc-per-node, or leave it out"
        )
    return _KINDS[wanted]


def _is_cpu(args: TrainingArguments) -> bool:
    """Whether processes compute on the CPU; the tests say no here, and shard on two of them."""
    return args.device.type == "cpu"


def check_shardable(joint: JointModel, args: TrainingArguments, optimizer: Any) -> None:
    """Refuse what needs the whole model within a step, or looks at more than single numbers of it.

    Args:
        joint: The model.
        args: The user's.
        optimizer: The user's, or None.

    Raises:
        GradvarError: If it does.
    """
    check_passes(joint.proposal.score, None if joint.mapnet is None else joint.options.target, bool(args.torch_compile))
    if optimizer is not None:
        raise GradvarError("fsdp: an optimizer made before holds parameters that are whole; give optim=… in its place")
    name = str(getattr(args.optim, "value", args.optim))
    if name not in _OPTIMIZERS:
        raise GradvarError(f"fsdp: optim='{name}' is not supported; take {', '.join(_OPTIMIZERS)}")


def check_passes(score: Score, target: str | None, compiled: bool) -> None:
    """Refuse passes that a sharded model cannot make.

    Args:
        score: Of the proposal.
        target: What the MAPNet learns; None without one.
        compiled: Whether the encoder is compiled.

    Raises:
        GradvarError: If there are such.
    """
    if is_measured(score):
        raise GradvarError(
            f"fsdp: the score '{score}' is measured by passes of its own at every step, for which the "
            "model would have to be whole; take the score mapnet, or leave fsdp out"
        )
    if target == "gradient":
        raise GradvarError(
            "fsdp: mapnet.target 'gradient' is measured by passes of its own, for which the model would have to be "
            "whole; take 'logit', or leave fsdp out"
        )
    if compiled:
        raise GradvarError("fsdp: a compiled encoder was not tried with it; leave one of the two out")


class Shards:
    """The parameters of a joint model, of which every process holds its share.

    Each layer of the encoder is gathered by itself, when its turn comes; all else (embeddings, head, MAPNet) when the
    joint model is called.

    Args:
        joint: The model, on its device; its parameters become :class:`~torch.distributed.tensor.DTensor`.
        device: The device.
        sharding: Whether layers are given back between a forward pass and its backward pass.
    """

    def __init__(self, joint: JointModel, device: torch.device, sharding: Sharding) -> None:
        self._joint, self._are_whole = joint, False
        parts = {"encoder": joint.encoder, "mapnet": joint.mapnet}
        self._live = {name: part for name, part in parts.items() if part is not None}
        self._copies = {name: _hollow(part) for name, part in self._live.items()}
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for layer in layers(joint.encoder):
            fully_shard(layer, mesh=mesh, reshard_after_forward=sharding == "full_shard")
        fully_shard(joint, mesh=mesh)

    @contextmanager
    def whole(self, device: torch.device | str | None) -> Iterator[None]:
        """Let copies with whole parameters take the places of encoder and MAPNet, on which nothing is shared out.

        What the block does may differ from process to process; but all must come here.

        Args:
            device: Where this process wants them; None helps the others, and changes nothing here.
        """
        if self._are_whole:
            yield
            return
        for name, live in self._live.items():
            for part in live.modules():
                if isinstance(part, FSDPModule):
                    part.reshard()  # the root stays whole behind a forward pass without a backward pass
            _fill(self._copies[name], live, device)
        try:
            self._are_whole = True
            if device is not None:
                self._put(self._copies)
            yield
        finally:
            self._put(self._live)
            self._are_whole = False
            for hollow in self._copies.values():
                for parameter in hollow.parameters():
                    parameter.data, parameter.grad = parameter.new_empty(0), None

    def _put(self, parts: Mapping[str, nn.Module]) -> None:
        for name, part in parts.items():
            setattr(self._joint, name, part)


class Wrapped(nn.Module):
    """Stands where the Trainer has DDP, and leaves to `fully_shard` what that would do.

    Gradients are reduced behind every micro-batch: to wait for the last one, as DDP does, they would have to be whole.

    Args:
        joint: The model.
        autocast: Makes contexts of mixed precision, if the training has it.
    """

    def __init__(self, joint: nn.Module, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.module, self._autocast = joint, autocast

    def forward(self, **batch: Tensor) -> Any:
        """Run the model."""
        with self._autocast():
            return self.module(**batch)


def layers(encoder: nn.Module) -> list[nn.Module]:
    """Return the layers of an encoder: the list of modules that holds most parameters.

    Args:
        encoder: Hugging Face masked LM.

    Returns:
        Those that share no parameter with anything else.
    """
    base: Any = encoder.base_model
    lists = [module for module in base.modules() if isinstance(module, nn.ModuleList)]
    most = max(lists, key=lambda x: sum(p.numel() for p in x.parameters()), default=nn.ModuleList())
    everywhere = _uses(encoder)
    return [x for x in most if (own := _uses(x)) and all(own[p] == everywhere[p] for p in own)]


def _uses(module: nn.Module) -> Counter[int]:
    return Counter(id(p) for part in module.modules() for p in part._parameters.values() if p is not None)


def full(tensor: Tensor) -> Tensor:
    """Put a tensor together, if it is shared out; a collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def alike(whole: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Share tensors out as others of the same names and shapes are, if these are; a collective.

    Args:
        whole: Tensors, and anything else, by name; the same on all processes.
        shared: What they are to be like.

    Returns:
        The same by name; as it was where nothing else is of that name.
    """

    def one(x: Any, like: Any) -> Any:
        if not isinstance(like, DTensor) or not isinstance(x, Tensor) or x.shape != like.shape:
            return x
        return distribute_tensor(x.to(like.device), like.device_mesh, like.placements)

    return {name: one(x, shared.get(name)) for name, x in whole.items()}


def gathered(optimizer: torch.optim.Optimizer, keep: bool) -> dict[str, Any]:
    """Put the state of an optimizer together on the CPU, as it would be without sharding; a collective.

    Args:
        optimizer: With parameters that are shared out.
        keep: Whether this process wants it; the others get a state without tensors.

    Returns:
        What ``state_dict`` gives.
    """
    state = optimizer.state_dict()

    def one(x: Any) -> Any:
        x = full(x) if isinstance(x, Tensor) else x
        return x.cpu() if isinstance(x, Tensor) and keep else None if isinstance(x, Tensor) else x

    found = {i: {name: one(x) for name, x in values.items()} for i, values in state["state"].items()}
    return state | {"state": found}


def shared_out(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Share the state of an optimizer out as its parameters are; a collective.

    Args:
        state: As :func:`gathered` gives it.
        optimizer: Of the same parameters.

    Returns:
        What its ``load_state_dict`` takes.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    found = {i: alike(values, dict.fromkeys(values, parameters[i])) for i, values in state["state"].items()}
    return {**state, "state": found}


def _hollow(module: nn.Module) -> nn.Module:
    """Copy a module, but for the numbers in its parameters."""
    parameters = {id(p): nn.Parameter(p.new_empty(0), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, parameters)  # what stands for what


def _fill(hollow: nn.Module, live: nn.Module, device: torch.device | str | None) -> None:
    """Put the numbers in, on a device; on None, help the others to do so."""
    for own, shared in zip(hollow.parameters(), live.parameters(), strict=True):
        numbers = full(shared.detach())
        if device is not None:
            own.data, own.requires_grad = numbers.to(device), shared.requires_grad
    for buffer, other in zip(hollow.buffers(), live.buffers(), strict=True):
        buffer.copy_(other)
