"""What a recipe would take, without doing it: parameters, memory, tokens, FLOPs and days on given devices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradvar.errors import GradvarError
from gradvar.huggingface.checkpoint import one_line
from gradvar.huggingface.forward import encoder_flops_per_token
from gradvar.mapnet.config import flops_per_token
from gradvar.mapnet.network import MapNet
from gradvar.masking.scores import is_measured
from gradvar.masking.uniform import target_count
from gradvar.training.devices import Devices
from gradvar.training.recipe import Recipe, masks_of, proposal_of
from gradvar.training.schedule import Schedule
from gradvar.training.sharding import check_passes
from gradvar.training.weightless import fake, mapnet_of, on_meta, saved_bytes

_FLOAT = 4  # bytes
_FRAME = 2  # special tokens of a sequence, which are no targets
_ROOM = 1.5  # times what is counted, for buffers and fragments; benchmarks/dry_run.py measures it
_SECONDS = 86_400


@dataclass(frozen=True)
class Plan:
    """What a recipe would take.

    Attributes:
        architecture: Class of the encoder.
        parameters: Of the encoder.
        mapnet: Parameters of the MAPNet; 0 without one.
        cells: Of a step, for each of the lengths.
        micro: Of them at once on one device, where they are longest.
        lengths: Tokens of a cell by the share of the budget.
        steps: How many; None where the budget is in seconds.
        tokens: Shown in all, at most: as if no cell were shorter.
        flops: In all, a multiply-add as two: forward and twice that backward, the MAPNet included.
        memory: Bytes on each device by what for, at the micro-batch's largest.
        devices: On which.
        days: On them, at the given utilisation.
        notes: What it leaves out.
    """

    architecture: str
    parameters: int
    mapnet: int
    cells: tuple[int, ...]
    micro: int
    lengths: Schedule
    steps: int | None
    tokens: float
    flops: float
    memory: dict[str, float]
    devices: Devices
    days: float
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool | None:
        """Whether a device's memory holds half as much again; None where it is not known."""
        if self.devices.memory is None:
            return None
        return _ROOM * sum(self.memory.values()) <= self.devices.memory


def plan(recipe: Recipe, devices: Devices, utilisation: float) -> Plan:
    """Find out what a recipe would take; no text is read, and of an architecture no weights are made.

    Args:
        recipe: The recipe.
        devices: What it is to run on.
        utilisation: Share of the devices' FLOP/s that is reached.

    Returns:
        The plan.

    Raises:
        GradvarError: If the recipe's model cannot be, or not be sharded, or its batch cannot be shared out.
    """
    try:
        return _plan(recipe, devices, utilisation)
    except RuntimeError as error:  # from a model's own code, which looks at numbers that are not there
        raise GradvarError(
            f"model.architecture '{recipe.model.architecture}' cannot be planned without weights ({one_line(error)}); "
            "train it for a few --steps"
        ) from error
    except GradvarError:
        raise
    except Exception as error:  # from there, too: whatever complaints about lengths and sizes that do not fit
        raise GradvarError(
            f"{recipe.model.source or recipe.model.architecture} cannot be planned ({one_line(error)}); correct "
            "model.config, or data.max_length"
        ) from error


def _plan(recipe: Recipe, devices: Devices, utilisation: float) -> Plan:
    if not 0 < utilisation <= 1:
        raise GradvarError(f"--utilisation {utilisation} is no share; give more than 0, up to 1")
    spec, lengths = recipe.training, _reached(Schedule.of(recipe.training.max_length or recipe.data.max_length))
    parts = devices.count * spec.accumulation
    if spec.batch % parts:
        raise GradvarError(
            f"training.batch {spec.batch} cannot be shared among {devices.count} devices with {spec.accumulation} "
            f"micro-batches each; give a multiple of {parts}"
        )
    micro, masks = spec.batch // parts, masks_of(recipe.masking)
    if micro % masks:
        raise GradvarError(
            f"{micro} cells at once on a device are no multiple of the {masks} masks of a sentence; give another "
            "training.batch, training.accumulation or --devices"
        )
    proposal, with_mapnet = proposal_of(recipe.masking), recipe.masking.proposal.startswith("mapnet")
    if spec.fsdp:
        if devices.count == 1:
            raise GradvarError(
                f"fsdp={spec.fsdp} shares the model among devices, of which there is one; give more, such as --devices "
                "8xH100, or leave it out"
            )
        check_passes(proposal.score, recipe.mapnet.target if with_mapnet else None, spec.compile)
    rates = Schedule.of(proposal.mask_rate or recipe.masking.mask_rate)
    model, longest = on_meta(recipe), int(max(lengths.values))
    network = mapnet_of(recipe, model, longest)
    ends = [*lengths.shares[1:], 1.0]
    per_token = sum(
        (end - share) * _training_flops(model, network, int(length), rates)
        for share, end, length in zip(lengths.shares, ends, lengths.values, strict=True)
    )
    a_step = spec.batch * recipe.data.max_length
    speed = devices.count * devices.flops * utilisation
    steps: int | None = spec.steps
    if spec.tokens is not None:
        steps = math.ceil(spec.tokens / a_step)
    tokens = float(steps * a_step) if steps is not None else (spec.seconds or 0.0) * speed / per_token
    parameters = sum(p.numel() for p in model.parameters())
    mapnet = 0 if network is None else sum(p.numel() for p in network.parameters())
    times = recipe.data.max_length // longest  # pieces of a sequence, where it is longest
    targets = int(target_count(torch.tensor([longest - _FRAME]), max(rates.values)))
    with fake(model) as made:
        saved = saved_bytes(made, micro * times, longest, targets, spec.bf16)
    return Plan(
        type(model).__name__,
        parameters,
        mapnet,
        tuple(spec.batch * (recipe.data.max_length // int(length)) for length in lengths.values),
        micro * times,
        lengths,
        steps,
        tokens,
        tokens * per_token,
        _states(parameters + mapnet, recipe.training.fsdp, devices.count) | {"activations": saved},
        devices,
        tokens * per_token / speed / _SECONDS,
        _left_out(recipe),
    )


def _reached(lengths: Schedule) -> Schedule:
    """Leave out a length that begins at the end of the budget, and so has no steps."""
    if lengths.shares[-1] < 1:
        return lengths
    return Schedule("steps", lengths.shares[:-1], lengths.values[:-1])


def lines_of(found: Plan, utilisation: float) -> list[str]:
    """Say what a recipe would take, a line each.

    Args:
        found: The plan.
        utilisation: What it was made with.

    Returns:
        The lines.
    """
    devices = found.devices
    beside = f", MAPNet {found.mapnet:,}" if found.mapnet else ""
    first, *others = (f"{n:,} cells of {x:g}" for n, x in zip(found.cells, found.lengths.values, strict=True))
    later = [
        f", from {share:.3g} of the budget on {text}"
        for share, text in zip(found.lengths.shares[1:], others, strict=True)
    ]
    longest = f" of {max(found.lengths.values):g}" if others else ""
    parts = ", ".join(f"{name} {_bytes(size)}" for name, size in found.memory.items())
    each = "" if devices.count == 1 else f" on each of {devices.count} devices"
    lines = [
        f"model: {found.architecture}, {found.parameters:,} parameters{beside}",
        f"a step: {first} tokens{''.join(later)}; {found.micro:,}{longest} at once{each}",
        f"memory of a device: {_bytes(sum(found.memory.values()))} ({parts}), buffers apart",
    ]
    if devices.memory is not None:
        memory = _bytes(devices.memory)
        lines[-1] += f"; fits {memory}" if found.fits else f"; may not fit {memory}: raise training.accumulation"
    steps = "" if found.steps is None else f"{found.steps:,} steps, "
    lines += [
        f"budget: {steps}{_large(found.tokens)} tokens at most",
        f"arithmetic: {found.flops:.3g} FLOPs, forward and backward",
        f"time: {_time(found.days)} on {devices.count} × {devices.name} at {utilisation:.0%} of {devices.flops:.3g} "
        "FLOP/s, a share that is assumed (--utilisation)",
    ]
    return lines + [f"note: {note}" for note in found.notes]


def _bytes(number: float) -> str:
    """Write bytes in MiB or GiB."""
    return f"{number / 2**20:.3g} MiB" if number < 2**30 else f"{number / 2**30:.3g} GiB"


def _large(number: float) -> str:
    """Write a count in thousands, millions or billions."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _time(days: float) -> str:
    hours = 24 * days
    if hours < 1:
        return f"{60 * hours:.2g} minutes"
    return f"{hours:.3g} hours" if days < 2 else f"{days:.3g} days"


def _training_flops(model: nn.Module, network: MapNet | None, length: int, rates: Schedule) -> float:
    """FLOPs of training for each token that is shown: forward, and twice as much backward."""
    rate = sum(rates.at((i + 0.5) / 100) for i in range(100)) / 100
    head = sum(m.weight.numel() for n, m in model.named_modules() if isinstance(m, nn.Linear) and _is_head(model, n))
    forward = encoder_flops_per_token(model, length) + 2 * rate * head
    return 3 * (forward + (0.0 if network is None else flops_per_token(network.config, length)))


def _is_head(model: Any, name: str) -> bool:
    return not name.startswith(f"{model.base_model_prefix}.")


def _states(parameters: int, fsdp: str | None, devices: int) -> dict[str, float]:
    """Bytes of weights, gradients and AdamW's two moments; FSDP shares them out, and DDP copies gradients to send."""
    whole = float(_FLOAT * parameters)
    if fsdp is None:
        buckets = {"buckets": whole} if devices > 1 else {}
        return {"weights": whole, "gradients": whole, "optimizer": 2 * whole} | buckets
    part = whole / devices
    return {"weights": part if fsdp == "full_shard" else whole, "gradients": part, "optimizer": 2 * part}


def _left_out(recipe: Recipe) -> tuple[str, ...]:
    """Say what takes more than is counted."""
    notes, score = [], proposal_of(recipe.masking).score
    with_mapnet = recipe.masking.proposal.startswith("mapnet")
    if with_mapnet:
        notes.append("what autograd keeps of the MAPNet is not counted; its parameters and FLOPs are")
    if with_mapnet and recipe.mapnet.target == "gradient":
        notes.append(f"true gradient norms at every {recipe.mapnet.every} steps cost more than is counted here")
    if is_measured(score):
        notes.append(f"measuring the score {score} takes passes of its own, which are not counted here")
    if recipe.watch.every:
        notes.append("looks at the variance are not counted")
    return tuple(notes)
