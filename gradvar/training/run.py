"""From a recipe to a run's folder, and on from there."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, TrainingArguments

from gradvar import checkpoints
from gradvar.checkpoints import STATE
from gradvar.errors import GradvarError
from gradvar.huggingface.checkpoint import locate
from gradvar.mapnet.files import CONFIG as MAPNET
from gradvar.mapnet.network import MapNet
from gradvar.masking.proposal import with_absolute_path
from gradvar.metrics import read_metrics
from gradvar.provenance import command, versions
from gradvar.training.arguments import arguments_of
from gradvar.training.callbacks import (
    Interrupted,
    Interruption,
    MetricsFile,
    Terminal,
    logging,
    unwinding,
)
from gradvar.training.data import Prepared, prepare
from gradvar.training.folder import BOARD, RECIPE, check_new, check_not_begun, held, made, written
from gradvar.training.model import build_encoder
from gradvar.training.reading import changed, read_recipe, recipe_of, write_recipe
from gradvar.training.recipe import Model, Recipe
from gradvar.training.schedule import Schedule
from gradvar.training.trainer import MaskProposalTrainer
from gradvar.training.watch import FEWEST, VarianceWatch

if TYPE_CHECKING:
    from rich.console import Console


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
    """  # noqa: DOC502
    check_new(out)
    with unwinding() as settled:
        return _run(_from_anywhere(recipe), out, console, cache, cpu, None, settled)


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
        raise GradvarError(f"--resume {run}: it {what}; give the --out folder of a run that wrote one")
    saved = json.loads((last / STATE).read_text())
    if "recipe" not in saved:
        raise GradvarError(
            f"--resume {run}: a script made this run; go on with it there, by train(resume_from_checkpoint=True)"
        )
    recipe = recipe_of(saved["recipe"], str(last / STATE))
    path = run / RECIPE
    if path.exists() and (keys := changed(recipe, read_recipe(path))):
        raise GradvarError(
            f"{path} was changed since the run began ({', '.join(keys)}); restore it, or start a new run with it"
        )
    evaluated, looked = _last_words(run, last)
    if saved["progress"] >= 1 and evaluated and (looked or not recipe.watch.every):
        console.print("this run is finished; there is nothing to go on with", highlight=False)
        done = checkpoints.step_of(last)
        return Ended(run, last, evaluated, done, None, saved["drawn_by"], saved["elapsed"])
    with unwinding() as settled:
        return _run(recipe, run, console, cache, cpu, last, settled)


def _run(
    recipe: Recipe,
    out: Path,
    console: Console,
    cache: Path | None,
    cpu: bool,
    last: Path | None,
    settled: Callable[[], None],
) -> Ended:
    args = arguments_of(recipe, out, cpu, resumed=last is not None)
    first = args.process_index == 0
    if recipe.training.fsdp and not args.fsdp:
        console.print("note: there is one process, which holds the whole model; training.fsdp rests", highlight=False)
    with args.main_process_first():
        prepared = prepare(recipe.data, cache or default_cache(), recipe.model.source, last)
    for line in prepared.summary():
        console.print(line, highlight=False, soft_wrap=True)
    saved = json.loads((last / STATE).read_text()) if last else {}
    if last and saved["data_sha256"] != prepared.sha256:
        raise GradvarError(f"{recipe.data.train} is another text than the run began with; restore it, or start anew")
    if last and recipe.data.streaming:
        console.print(
            f"reading the stream again up to step {checkpoints.step_of(last):,}, from where the run goes on; nothing "
            "is trained on twice",
            highlight=False,
            soft_wrap=True,
        )
    if recipe.watch.every and len(prepared.valid) < FEWEST:
        raise GradvarError(
            f"watch.every takes {FEWEST} held-out sequences, of which there are {len(prepared.valid)}; give more text"
        )
    with made(out, first and last is None), held(out) if first else nullcontext():
        if first and last is None:
            check_not_begun(out)  # another process may have been here while the text was tokenised
        trainer = _trainer(recipe, args, prepared, out, last, console)
        trainer.extra_state = {
            "recipe": recipe.model_dump(mode="json"),
            "data_sha256": prepared.sha256,
            "max_length": recipe.data.max_length,
        }
        _introduce(trainer, console)
        interruption, terminal = Interruption(trainer), Terminal(trainer, console)
        say = partial(console.print, highlight=False, soft_wrap=True)
        watch = [VarianceWatch(trainer, prepared.valid, recipe.watch, say)] if recipe.watch.every else []
        file, boards = MetricsFile(out), _boards(recipe, out, last, first)
        for callback in (file, interruption, terminal, *boards, *watch):
            trainer.add_callback(callback)
        metrics: dict[str, float] = {}
        settled()
        interruption.listen()
        try:
            try:
                if last and saved["progress"] >= 1:  # but for its last words
                    trainer.go_to(last)
                    interruption.listen_after_saving()
                    if first:
                        file.mend(trainer.state.global_step)
                    metrics, looked = _last_words(out, last)
                    for each in watch if not looked else ():
                        each.look(trainer.state)
                else:
                    trainer.train(resume_from_checkpoint=str(last) if last else None)
                if not trainer.stopped:
                    metrics = metrics or trainer.last_evaluation()
            finally:
                interruption.silence()
                terminal.close()
                for board in boards:
                    board.close()
        except Interrupted:
            metrics = {}
    return Ended(
        out,
        checkpoints.last_whole(out),
        metrics,
        trainer.state.global_step,
        trainer.stopped or trainer.stop or None,
        trainer.joint.in_words,
        trainer.elapsed,
        sum(each.seconds for each in watch),
    )


def _from_anywhere(recipe: Recipe) -> Recipe:
    """Make the paths of a recipe absolute, so that its run can go on from wherever the user is."""

    def absolute(name: str | None) -> str | None:
        return str(Path(name).absolute()) if name is not None and os.path.exists(name) else name

    data, model = recipe.data, recipe.model
    tokenizer = data.tokenizer.model_copy(update={"source": absolute(data.tokenizer.source)})
    texts = {"train": absolute(data.train), "valid": absolute(data.valid), "tokenizer": tokenizer}
    model = model.model_copy(update={"source": absolute(model.source)})
    masking = recipe.masking.model_copy(update={"proposal": with_absolute_path(recipe.masking.proposal)})
    return recipe.model_copy(update={"data": data.model_copy(update=texts), "model": model, "masking": masking})


def _trainer(
    recipe: Recipe, args: TrainingArguments, prepared: Prepared, out: Path, last: Path | None, console: Console
) -> MaskProposalTrainer:
    """Make the trainer of a recipe, and write down the recipe of a new run."""
    # What it began with may be gone when it goes on; its own last weights are there.
    spec = Model(source=str(last)) if last and recipe.model.source else recipe.model
    encoder = build_encoder(spec, prepared.tokenizer, recipe.data.max_length, recipe.seed)
    network, length = _mapnet_of(spec, recipe, console), recipe.training.max_length
    with _installed():
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
            tokens=recipe.training.tokens,
            max_length=None if length is None else Schedule.of(length),
            block=recipe.data.block,
        )
    if args.process_index == 0 and last is None:
        head = f"# {command()}\n# {', '.join(f'{name} {value}' for name, value in versions().items())}\n"
        with written(out):
            (out / RECIPE).write_text(head + write_recipe(recipe), encoding="utf-8")
    trainer.remove_callback(PrinterCallback)
    return trainer


def _introduce(trainer: MaskProposalTrainer, console: Console) -> None:
    """Say what is trained."""
    encoder, mapnet = trainer.joint.encoder, trainer.joint.mapnet
    beside = f", MAPNet {sum(p.numel() for p in mapnet.parameters()):,}" if mapnet else ""
    parameters = sum(p.numel() for p in encoder.parameters())
    shared = f"; shared out among {trainer.args.world_size} processes" if trainer.shards else ""
    lines = [f"model: {type(encoder).__name__}, {parameters:,} parameters{beside}{shared}", *_caveats(trainer)]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _last_words(run: Path, last: Path) -> tuple[dict[str, float], bool]:
    """Return the evaluation of a checkpoint, empty if there is none, and whether its variance was looked at."""
    lines = [line for line in read_metrics(run) if line["step"] == checkpoints.step_of(last)]
    evaluated = [line for line in lines if "eval_loss" in line]
    return evaluated[-1] if evaluated else {}, any("watch/seconds" in line for line in lines)


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
    if not trainer.joint.mask_rates.constant:
        lines.append(
            f"note: the mask rate is {trainer.joint.mask_rates} by the share of the budget, each an objective of its "
            "own; the held-out loss is that of 15% throughout"
        )
    if proposal.mask_rate is not None and proposal.mask_rate != trainer.joint.masking.mask_rate:
        lines.append(f"note: masks of {rate:.0%} train another objective than those of the recipe's mask rate")
    return lines


@contextmanager
def _installed() -> Iterator[None]:
    """Say in one line which logger is not there."""
    try:
        yield
    except (RuntimeError, ImportError) as error:
        if "to be installed" not in str(error):
            raise
        raise GradvarError(f"saving.loggers: {str(error).splitlines()[0]}") from error


def _boards(recipe: Recipe, out: Path, last: Path | None, first: bool) -> list[Any]:
    """TensorBoard, where it is asked for; to be closed when all is logged."""
    if "tensorboard" not in recipe.saving.loggers or not first:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    path = out / BOARD

    class Board(TensorBoardCallback):
        """Stays open for the looks and the evaluation after the last step."""

        def on_train_begin(self, *args: Any, **options: Any) -> None:
            with logging(path):
                super().on_train_begin(*args, **options)  # type: ignore[no-untyped-call]

        def on_log(self, *args: Any, **options: Any) -> None:
            with logging(path):
                super().on_log(*args, **options)  # type: ignore[no-untyped-call]

        def on_train_end(self, *_: Any, **__: Any) -> None:
            pass

        def close(self) -> None:
            with suppress(OSError):  # metrics.jsonl has every line of it
                self.tb_writer.close()
            threading.excepthook = elsewhere

    elsewhere = threading.excepthook

    def in_a_thread(error: threading.ExceptHookArgs) -> None:
        if not isinstance(error.exc_value, OSError) or "AsyncWriter" not in type(error.thread).__name__:
            elsewhere(error)  # what the writer's thread could not write is raised here, at the next line

    threading.excepthook = in_a_thread
    with written(out):
        purged = checkpoints.step_of(last) + 1 if last else None
        return [Board(SummaryWriter(str(path), purge_step=purged))]  # type: ignore[no-untyped-call]
