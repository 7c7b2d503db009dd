"""`TrainingArguments`: those of a recipe, and those that the trainer can honour; what it cannot is refused by name."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from gradvar.errors import GradvarError
from gradvar.masking.proposal import nearest
from gradvar.training.recipe import Recipe
from gradvar.training.sharding import asked_for

ENDLESS = 2**40
"""Steps of a run whose budget is in seconds."""
_REFUSED: dict[str, tuple[Any, str]] = {
    "fp16": (False, "take bf16"),
    "fp16_full_eval": (False, "what is measured is measured in full precision"),
    "bf16_full_eval": (False, "what is measured is measured in full precision"),
    "label_smoothing_factor": (0.0, "the loss is the cross-entropy that is studied"),
    "neftune_noise_alpha": (None, "it is a noise that no level knows of"),
    "auto_find_batch_size": (False, "the order of the sequences follows from the batch"),
    "train_sampling_strategy": ("random", "the order of the sequences is a function of the seed alone"),
    "data_seed": (None, "the order of the sequences is a function of the seed"),
    "push_to_hub": (False, "push a finished checkpoint"),
    "deepspeed": (None, "start it with torchrun"),
}


def adapted(
    args: TrainingArguments, model: nn.Module, seconds: float | None = None, tokens: int | None = None
) -> TrainingArguments:
    """Copy arguments, and do to the model what the Trainer would do to it by them.

    Args:
        args: The user's, which stay as they are.
        model: The masked LM.
        seconds: Budget in seconds, or None.
        tokens: Budget in tokens, if it is not known how many steps that takes.

    Returns:
        Arguments that :class:`transformers.Trainer` gets.

    Raises:
        GradvarError: If one of them cannot be honoured.
    """
    for name, (default, remedy) in _REFUSED.items():
        value = getattr(args, name, default)
        if value and value != default:
            raise GradvarError(f"TrainingArguments({name}={value!r}) is not supported: {remedy}")
    halves = {p.dtype for p in model.parameters()} & {torch.float16, torch.bfloat16}
    if halves:
        raise GradvarError(
            f"the model's parameters are {str(halves.pop()).removeprefix('torch.')}, in which small updates are lost; "
            "load it with from_pretrained(…, dtype=torch.float32), and take bf16=True for its arithmetic"
        )
    open_ended = {unit: budget for unit, budget in (("seconds", seconds), ("tokens", tokens)) if budget is not None}
    in_steps = [name for name in args.lr_scheduler_kwargs or {} if name.endswith("_steps")]
    for unit, budget in open_ended.items():
        if not budget > 0:
            raise GradvarError(f"a budget of {budget} {unit} is none; give more than 0")
        if args.warmup_steps >= 1:
            raise GradvarError(f"a budget in {unit} takes warmup_steps as a share of it, below 1")
        if in_steps:
            raise GradvarError(
                f"lr_scheduler_kwargs: a budget in {unit} has no number of steps to give {in_steps[0]} of"
            )
    args = copy.copy(args)
    args.fsdp, args.fsdp_plugin_args = "", None  # the trainer does itself what `sharding.asked_for` reads there
    os.environ.pop("ACCELERATE_USE_FSDP", None)  # which earlier arguments set
    args.ignore_data_skip = True  # the sampler begins where the run is
    if args.device.type == "cuda":
        args._n_gpu = 1  # several take torchrun; DataParallel knows no sums over ranks
    if open_ended:
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


def arguments_of(recipe: Recipe, out: Path, cpu: bool, resumed: bool = False) -> TrainingArguments:
    """Make the arguments that a recipe asks for.

    Args:
        recipe: The recipe; its budget is in steps, or known later.
        out: The run's folder.
        cpu: Use no GPU.
        resumed: Whether the run goes on, and so may do without its sharding in one process.

    Returns:
        The arguments.

    Raises:
        GradvarError: If they cannot be.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    spec, saving, every = recipe.training, recipe.saving, recipe.evaluation.every
    for name in saving.loggers:
        if name not in INTEGRATION_TO_CALLBACK:
            raise GradvarError(f"saving.loggers: there is no logger '{name}'{nearest(name, INTEGRATION_TO_CALLBACK)}")
    try:
        args = TrainingArguments(
            output_dir=str(out),
            seed=recipe.seed,
            per_device_train_batch_size=1,  # known when the processes are
            gradient_accumulation_steps=spec.accumulation,
            max_steps=spec.steps or 1,
            learning_rate=spec.learning_rate,
            lr_scheduler_type=spec.schedule,
            weight_decay=spec.weight_decay,
            adam_beta1=spec.betas[0],
            adam_beta2=spec.betas[1],
            max_grad_norm=spec.clip,
            warmup_steps=spec.warmup,
            bf16=spec.bf16,
            torch_compile=spec.compile,
            tf32=False,  # compiling would turn it on, for all that the process measures
            use_cpu=cpu or not torch.cuda.is_available(),
            dataloader_num_workers=spec.workers,
            logging_steps=saving.log_every,
            eval_strategy="no" if every is None else "steps",
            eval_steps=every,
            per_device_eval_batch_size=recipe.evaluation.batch,
            save_strategy="steps",
            save_steps=saving.every or 2**40,
            save_total_limit=saving.keep,
            report_to=[name for name in saving.loggers if name != "tensorboard"] or "none",
            logging_nan_inf_filter=False,  # the logged loss is this package's own
            disable_tqdm=True,
            log_level="error",
            log_level_replica="error",
        )
    except (ValueError, ImportError) as error:
        raise GradvarError(f"the recipe's training section cannot be: {str(error).splitlines()[0]}") from error
    if args.world_size > 1 or not resumed:
        args.fsdp = spec.fsdp  # as text, which the class itself warns of
        asked_for(args)  # before anything is prepared
    parts = args.world_size * spec.accumulation
    if spec.batch % parts:
        raise GradvarError(
            f"training.batch {spec.batch} cannot be shared among {args.world_size} processes with {spec.accumulation} "
            f"micro-batches each; give a multiple of {parts}"
        )
    args.per_device_train_batch_size = spec.batch // parts
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
