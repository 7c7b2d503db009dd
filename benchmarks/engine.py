"""What per-cell gradient statistics cost: engines against the ordinary forward and backward of the same cells.

Every contender lives in a process of its own (so peak memory is its own) and all take turns, so that a noisy
machine slows them alike. Quote the ratios: medians over rounds of a contender's time over the ordinary step's
in the same round. `ordinary` takes all cells in one batch, `ordinary-1` a sentence's cells at a time, as the
engine does: how much the batch size itself matters.

    python benchmarks/engine.py                                     # BERT tiny and mini, all contenders
    python benchmarks/engine.py --models tiny --contenders ordinary,onepass --rounds 30
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

VOCABULARY = 30_522
SIZES = {"tiny": (2, 128, 2), "mini": (4, 256, 4), "small": (4, 512, 8)}
CONTENDERS = ("ordinary", "ordinary-1", "onepass", "reference", "loop")


def contender(kind: str, size: str, sentences: int, masks: int, length: int, groups: int) -> Callable[[], None]:
    """Build one contender's step."""
    import numpy as np
    import torch
    from transformers import BertConfig, BertForMaskedLM

    from gradvar.decomposition.moments import MomentAccumulator, even_layout
    from gradvar.huggingface.corpus import Corpus
    from gradvar.huggingface.masked_lm import MaskedLM
    from gradvar.persample.onepass import OnePass
    from gradvar.persample.parameters import select
    from gradvar.persample.reference import Reference

    class Tokenizer:
        mask_token_id, pad_token_id, all_special_ids = 103, 0, [0, 100, 101, 102, 103]

        def __len__(self) -> int:
            return VOCABULARY

    torch.manual_seed(0)
    layers, width, heads = SIZES[size]
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    model = BertForMaskedLM(config).eval()
    tokens = np.random.default_rng(0).integers(1000, VOCABULARY, (sentences, length), dtype=np.int32)
    objective = MaskedLM(model, Tokenizer(), Corpus(tuple(tokens), "random", "", length, 0.0))
    batch = objective.draw(range(sentences), (masks,), seed=0)
    cells = sentences * masks
    targets = select(model)
    parameters = [target.parameter for target in targets]
    layout = even_layout((sentences, masks), groups)

    def ordinary() -> None:
        model.zero_grad(set_to_none=True)
        objective.losses(batch).sum().backward()

    def sentence_by_sentence() -> None:
        model.zero_grad(set_to_none=True)
        for start in range(sentences):
            part = {name: x[start * masks : (start + 1) * masks] for name, x in batch.items()}
            objective.losses(part).sum().backward()

    def loop() -> None:
        for cell in range(cells):
            loss = objective.losses({name: tensor[cell : cell + 1] for name, tensor in batch.items()}).sum()
            torch.autograd.grad(loss, parameters)

    engine = {"onepass": OnePass, "reference": Reference}.get(kind, OnePass)(model, targets)

    def statistics_step() -> None:
        accumulators = {id(t.parameter): MomentAccumulator(*t.shape, layout, t.parameter.dtype) for t in targets}
        for start in range(sentences):  # a sentence at a time, as `gradvar.decompose` does on a CPU
            part = {name: x[start * masks : (start + 1) * masks] for name, x in batch.items()}
            engine.accumulate(objective.losses, part, accumulators, start)
        for accumulator in accumulators.values():
            accumulator.finish()

    steps = {"ordinary": ordinary, "ordinary-1": sentence_by_sentence, "loop": loop}
    return steps.get(kind, statistics_step)


def serve(pipe: "multiprocessing.connection.Connection", threads: int, arguments: tuple) -> None:
    """Take turns on command: run one step, answer (seconds, peak bytes of this process, bytes before)."""
    import torch

    torch.set_num_threads(threads)
    step = contender(*arguments)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    while pipe.recv():
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        pipe.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, before))


def race(names: list[str], size: str, args: argparse.Namespace) -> list[dict]:
    """Let the contenders take turns."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in names:
        pipes[name], end = context.Pipe()
        arguments = (name, size, args.sentences, args.masks, args.length, args.groups)
        process = context.Process(target=serve, args=(end, args.threads, arguments), daemon=True)
        process.start()
        processes.append(process)
    times = {name: [] for name in names}
    peaks = {}
    for round_ in range(args.rounds + 2):
        for name in names:
            if name in ("reference", "loop") and round_ >= args.slow_rounds + 1:
                continue
            pipes[name].send(True)
            seconds, peak, before = pipes[name].recv()
            peaks[name] = (peak, before)
            if round_ >= (1 if name in ("reference", "loop") else 2):
                times[name].append((round_, seconds))
    for name, process in zip(names, processes, strict=True):
        pipes[name].send(False)
        process.join()
    ordinary = dict(times["ordinary"])
    rows = []
    for name in names:
        paired = [seconds / ordinary.get(r, statistics.median(ordinary.values())) for r, seconds in times[name]]
        peak, before = peaks[name]
        rows.append(
            {
                "model": size,
                "contender": name,
                "median_s": statistics.median(s for _, s in times[name]),
                "ratio": statistics.median(paired),
                "ratio_low": min(paired),
                "ratio_high": max(paired),
                "peak_MiB": peak / 2**20,
                "step_MiB": (peak - before) / 2**20,
                "rounds": len(paired),
            }
        )
    return rows


def main() -> None:
    """Race, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny,mini")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--sentences", type=int, default=8)
    parser.add_argument("--masks", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--slow-rounds", type=int, default=3)
    parser.add_argument("--json", help="write the rows to this file too")
    args = parser.parse_args()
    names = args.contenders.split(",")
    if "ordinary" not in names:
        parser.error("the contenders must include 'ordinary', which the ratios refer to")
    rows = []
    print(f"{'model':<6} {'contender':<10} {'median s':>9} {'ratio':>6}  {'range':<14} {'peak MiB':>9} {'step MiB':>9}")
    for size in args.models.split(","):
        for row in race(names, size, args):
            rows.append(row)
            spread = f"{row['ratio_low']:.2f}-{row['ratio_high']:.2f}"
            print(
                f"{row['model']:<6} {row['contender']:<10} {row['median_s']:>9.3f} {row['ratio']:>6.2f}  {spread:<14} "
                f"{row['peak_MiB']:>9.0f} {row['step_MiB']:>9.0f}",
                flush=True,
            )
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
