"""From a recipe to a run's folder, and on from there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, TrainingArguments

from gradvar import checkpoints
from gradvar.errors import GradvarError
from gradvar.huggingface.checkpoint import locate
from gradvar.mapnet.files import CONFIG as MAPNET
from gradvar.mapnet.network import MapNet
from gradvar.masking.proposal import nearest
from gradvar.provenance import command, versions
from gradvar.training.callbacks import Interruption, MetricsFile, Terminal, read_metrics
from gradvar.training.data import Prepared, lengths_of, prepare
from gradvar.training.model import build_encoder
from gradvar.training.order import Order
from gradvar.training.reading import changed, recipe_of, write_recipe
from gradvar.training.recipe import Model, Recipe
from gradvar.training.saving import STATE
from gradvar.training.trainer import MaskProposalTrainer
from gradvar.training.watch import VarianceWatch

if TYPE_CHECKING:
    from rich.console import Console

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Ended:
    """How a session of a run ended.

    Attributes:
        run: The run's folder.
        checkpoint: Its last whole checkpoint.
        metrics: The last evaluation; empty where the run was interrupted.
        steps: Steps that were done, of all sessions.
        signal: What interrupted it, or None.
        drawn_by: The proposal in use at the end, as text that other commands read.
        seconds: Of training, of all sessions.
        watched: Seconds in which this session watched the variance, beside them.
    """

    run: Path
    checkpoint: Path | None
    metrics: dict[str, float]
    steps: int
    signal: int | None
    drawn_by: str
    seconds: float
    watched: float = 0.0


def default_cache() -> Path:
    """Where tokenised text is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradvar"


def start(recipe: Recipe, out: Path, console: Console, cache: Path | None = None, cpu: bool = False) -> Ended:
    """Begin a run.

    Args:
        recipe: What is to be done.
        out: The run's folder; it must not exist, or be empty.
        console: Where progress is shown.
        cache: Where tokenised text is kept.
        cpu: Use no GPU.

    Returns:
        How it ended.

    Raises:
        GradvarError: If it cannot be begun, or cannot go on; the message says why and what to do.
    """
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        whole = checkpoints.last_whole(out) if out.is_dir() else None
        remedy = (
            f"go on with gradvar train --resume {out}, or give another folder"
            if whole
            else "remove it, or give another folder"
        )
        raise GradvarError(f"--out {out} is there already; {remedy}")
    return _run(recipe, out, console, cache, cpu, None)


def resume(run: Path, console: Console, cache: Path | None = None, cpu: bool = False) -> Ended:
    """Go on with a run from its last whole checkpoint.

    Args:
        run: Its folder.
        console: Where progress is shown.
        cache: Where tokenised text is kept.
        cpu: Use no GPU.

    Returns:
        How it ended.

    Raises:
        GradvarError: If there is no whole checkpoint, the recipe was changed, or the text is another one.
    """
    last = checkpoints.last_whole(run)
    if last is None:
        what = "is no folder" if not run.is_dir() else "holds no whole checkpoint"
        raise GradvarError(f"--resume {run}: it {what}; give the --out folder of a run that wrote one, or start anew")
    saved = json.loads((last / STATE).read_text())
    recipe = recipe_of(saved["recipe"], str(last / STATE))
    path = run / RECIPE
    if path.exists():
        import yaml

        if keys := changed(recipe, recipe_of(yaml.safe_load(path.read_text()), str(path))):
            raise GradvarError(
                f"{path} was changed since the run began ({', '.join(keys)}); restore it, or start a new run with it"
            )
    done = _steps_of(last)
    if _is_finished(recipe, saved, done):
        evaluated = [line for line in read_metrics(run) if "eval_loss" in line and line["step"] == done]
        if evaluated:
            console.print("this run is finished; there is nothing to go on with", highlight=False)
            return Ended(run, last, evaluated[-1], done, None, saved["drawn_by"], saved["elapsed"])
    return _run(recipe, run, console, cache, cpu, last)


def _run(recipe: Recipe, out: Path, console: Console, cache: Path | None, cpu: bool, last: Path | None) -> Ended:
    args = _arguments(recipe, out, cpu)
    first = args.process_index == 0
    with args.main_process_first():
        prepared = prepare(recipe.data, cache or default_cache(), recipe.model.source, last)
    for line in prepared.summary():
        console.print(line, highlight=False, soft_wrap=True)
    saved = json.loads((last / STATE).read_text()) if last else {}
    if last and saved["data_sha256"] != prepared.sha256:
        raise GradvarError(f"{recipe.data.train} is another text than the run began with; restore it, or start anew")
    # What it began with may be gone when it goes on; its own last weights are there.
    spec = Model(source=str(last)) if last and recipe.model.source else recipe.model
    encoder = build_encoder(spec, prepared.tokenizer, recipe.data.max_length, recipe.seed)
    network = _mapnet_of(spec, recipe, console)
    _set_steps(recipe, args, prepared)
    with _folder(out, first):
        trainer = MaskProposalTrainer(
            encoder,
            args,
            prepared.train,
            prepared.valid,
            processing_class=prepared.tokenizer,
            masking=recipe.masking,
            mapnet=recipe.mapnet,
            network=network,
            evaluation=recipe.evaluation,
            seconds=recipe.training.seconds,
        )
        if first and last is None:
            head = f"# {command()}\n# {', '.join(f'{name} {value}' for name, value in versions().items())}\n"
            (out / RECIPE).write_text(head + write_recipe(recipe), encoding="utf-8")
    trainer.extra_state = {
        "recipe": recipe.model_dump(mode="json"),
        "data_sha256": prepared.sha256,
        "max_steps": args.max_steps,
    }
    parameters = sum(p.numel() for p in encoder.parameters())
    beside = f", MAPNet {sum(p.numel() for p in m.parameters()):,}" if (m := trainer.joint.mapnet) else ""
    console.print(
        f"model: {type(encoder).__name__}, {parameters:,} parameters{beside}", highlight=False, soft_wrap=True
    )
    for line in _caveats(trainer):
        console.print(line, highlight=False, soft_wrap=True)
    trainer.remove_callback(PrinterCallback)
    interruption, terminal = Interruption(trainer), Terminal(trainer, console)
    watch = [VarianceWatch(trainer, prepared.valid, recipe.watch)] if recipe.watch.every else []
    for callback in (MetricsFile(out), interruption, terminal, *_loggers(recipe, out, last, first), *watch):
        trainer.add_callback(callback)
    try:
        if last and _is_finished(recipe, saved, _steps_of(last)):  # but for its last evaluation
            trainer.go_to(last)
        else:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        metrics = {} if trainer.stopped else trainer.last_evaluation()
    finally:
        interruption.silence()
        terminal.close()
    return Ended(
        out,
        checkpoints.last_whole(out),
        metrics,
        trainer.state.global_step,
        trainer.stopped or None,
        trainer.joint.in_words,
        trainer.elapsed,
        sum(each.seconds for each in watch),
    )


def _mapnet_of(spec: Model, recipe: Recipe, console: Console) -> MapNet | None:
    """Take the MAPNet that lies beside a checkpoint, where the recipe neither needs none nor wants another shape."""
    if spec.source is None or recipe.mapnet.shape or not recipe.masking.proposal.startswith("mapnet"):
        return None
    folder = locate(spec.source, "model.source")
    if not (folder / MAPNET).is_file():
        return None
    console.print(f"going on with the MAPNet of {folder}", highlight=False, soft_wrap=True)
    return MapNet.from_pretrained(folder)


def _caveats(trainer: MaskProposalTrainer) -> list[str]:
    """Say what a proposal does to the objective."""
    proposal = trainer.joint.proposal
    unbiased, rate = proposal.design.unbiased, trainer.joint.mask_rate
    lines = []
    if unbiased == "no model":
        lines.append(f"note: {proposal} carries no weights; what it trains is another objective than uniform masks")
    elif unbiased != "every model":
        lines.append(
            f"note: {proposal} weighs every target by itself; its expected gradient is that of uniform masks only as "
            "far as targets do not interact (gradvar compare measures how far)"
        )
    if proposal.mask_rate is not None and proposal.mask_rate != trainer.joint.masking.mask_rate:
        lines.append(f"note: masks of {rate:.0%} train another objective than those of the recipe's mask rate")
    return lines


def _arguments(recipe: Recipe, out: Path, cpu: bool) -> TrainingArguments:
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
            disable_tqdm=True,
            log_level="error",
            log_level_replica="error",
        )
    except (ValueError, ImportError) as error:
        raise GradvarError(f"the recipe's training section cannot be: {str(error).splitlines()[0]}") from error
    parts = args.world_size * spec.accumulation
    if spec.batch % parts:
        raise GradvarError(
            f"training.batch {spec.batch} cannot be shared among {args.world_size} processes with {spec.accumulation} "
            f"micro-batches each; give a multiple of {parts}"
        )
    args.per_device_train_batch_size = spec.batch // parts
    return args


def _set_steps(recipe: Recipe, args: TrainingArguments, prepared: Prepared) -> None:
    """Turn a budget in tokens into one in steps: the order of the sequences is known."""
    if recipe.training.tokens is None:
        return
    from gradvar.training.recipe import masks_of

    masks = masks_of(recipe.masking)
    order = Order(len(prepared.train), recipe.training.batch // masks, recipe.seed)
    args.max_steps = order.steps_for(recipe.training.tokens, lengths_of(prepared.train) * masks)


@contextmanager
def _folder(out: Path, first: bool) -> Iterator[None]:
    """Make the run's folder for what the block does, and take it back if that fails."""
    try:
        missing = [path for path in (out.absolute(), *out.absolute().parents) if not path.exists()]
        if first:
            out.mkdir(parents=True, exist_ok=True)
        try:
            yield
        except BaseException:
            if first and missing:
                shutil.rmtree(missing[-1], ignore_errors=True)
            raise
    except OSError as error:
        raise GradvarError(f"--out {out} cannot be written ({error.strerror}); give another folder") from error
    except (RuntimeError, ImportError) as error:
        if "install" not in str(error):
            raise
        raise GradvarError(f"saving.loggers: {str(error).splitlines()[0]}") from error


def _loggers(recipe: Recipe, out: Path, last: Path | None, first: bool) -> list[Any]:
    if "tensorboard" not in recipe.saving.loggers or not first:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    return [
        TensorBoardCallback(SummaryWriter(str(out / "tensorboard"), purge_step=_steps_of(last) + 1 if last else None))
    ]


def _steps_of(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix(checkpoints.PREFIX))


def _is_finished(recipe: Recipe, saved: dict[str, Any], done: int) -> bool:
    if recipe.training.seconds is not None:
        return bool(saved["elapsed"] >= recipe.training.seconds)
    return done >= saved["max_steps"]
