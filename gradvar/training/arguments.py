"""`TrainingArguments` as the trainer can honour them: what it cannot is refused by name."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from gradvar.errors import GradvarError

ENDLESS = 2**40
"""Steps of a run whose budget is in seconds."""
_REFUSED: dict[str, tuple[Any, str]] = {
    "fp16": (False, "take bf16"),
    "label_smoothing_factor": (0.0, "the loss is the cross-entropy that is studied"),
    "neftune_noise_alpha": (None, "it is a noise that no level knows of"),
    "auto_find_batch_size": (False, "the order of the sequences follows from the batch"),
    "train_sampling_strategy": ("random", "the order of the sequences is a function of the seed alone"),
    "data_seed": (None, "the order of the sequences is a function of the seed"),
    "push_to_hub": (False, "push a finished checkpoint"),
    "deepspeed": (None, "start it with torchrun"),
}


def adapted(args: TrainingArguments, model: nn.Module, seconds: float | None) -> TrainingArguments:
    """Copy arguments, and do to the model what the Trainer would do to it by them.

    Args:
        args: The user's, which stay as they are.
        model: The masked LM.
        seconds: Budget in seconds, or None.

    Returns:
        Arguments that :class:`transformers.Trainer` gets.

    Raises:
        GradvarError: If one of them cannot be honoured.
    """
    for name, (default, remedy) in _REFUSED.items():
        value = getattr(args, name, default)
        if value and value != default:
            raise GradvarError(f"TrainingArguments({name}={value!r}) is not supported: {remedy}")
    if args.fsdp:
        raise GradvarError("TrainingArguments(fsdp=…) is not supported: start it with torchrun, each with the model")
    if seconds is not None and args.warmup_steps >= 1:
        raise GradvarError("a budget in seconds takes warmup_steps as a share of it, below 1")
    args = copy.copy(args)
    args.ignore_data_skip = True  # the sampler begins where the run is
    if args.device.type == "cuda":
        args._n_gpu = 1  # several take torchrun; DataParallel knows no sums over ranks
    if seconds is not None:
        args.max_steps = ENDLESS
    checkpointing = [
        name for name in ("activation_checkpointing", "gradient_checkpointing") if getattr(args, name, None)
    ]
    if checkpointing:
        encoder: Any = model
        options = getattr(args, f"{checkpointing[0]}_kwargs", None) or {"use_reentrant": False}
        encoder.gradient_checkpointing_enable(options)
        for name in checkpointing:
            setattr(args, name, False)
    if args.torch_compile:
        compile_encoder(model, args.torch_compile_backend or "inductor", args.torch_compile_mode)
        args.torch_compile, args.torch_compile_backend, args.torch_compile_mode = False, None, None
        for name in ("BACKEND", "MODE"):
            os.environ.pop(f"ACCELERATE_DYNAMO_{name}", None)  # which the arguments set when they were made
    return args


def compile_encoder(model: nn.Module, backend: str, mode: str | None) -> None:
    """Compile the encoder alone, for training alone: what draws masks, and what measures, is no static graph.

    Args:
        model: The masked LM.
        backend: As :func:`torch.compile` takes it.
        mode: As :func:`torch.compile` takes it.
    """
    base: Any = model.base_model
    eager = base.forward
    compiled = torch.compile(eager, backend=backend, mode=mode)
    base.forward = lambda *args, **kwargs: (compiled if base.training else eager)(*args, **kwargs)
