"""Tokens a second of the trainer against a `run_mlm`-like script: stock Trainer, stock collator and full logits.

Pre-stated. Contenders train the same BERT from the same weights on the same sequences with the same optimizer settings:
the stock script, the uniform trainer, and the trainer with a MAPNet that draws every mask (mapnet/pps~0.1: no
calibration, so that it never falls back to uniform masks), which learns from the logits of every step, or from true
gradient norms at every fourth step. They take turns, `--rounds` times; a turn is a whole call of `train` of which the
first two steps do not count. Compared by the ratio of tokens a second within a round; median and range over the rounds.
The cost of the variance callback is the seconds of one look (16 sentences, 4 masks, 2 contexts, a MAPNet in use) over
those of one uniform step, of the first round alone, as it takes minutes. Text is random tokens: no contender looks at
what they are.

    python benchmarks/trainer.py --look --out docs/training.md     # between the markers of the page
"""

import argparse
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    BertTokenizerFast,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from gradvar.training.recipe import MapNetTraining, Watch
from gradvar.training.trainer import MaskProposalTrainer
from gradvar.training.watch import VarianceWatch

SIZES = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512)}
VOCABULARY, LENGTH, SKIPPED = 30522, 128, 2
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


class Clock(TrainerCallback):
    """Notes when steps end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note it."""
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Of a step, the first ones left out."""
        return (self.ends[-1] - self.ends[SKIPPED - 1]) / (len(self.ends) - SKIPPED)


def model(size: str, dropout: float) -> Any:
    """Make the BERT of a size."""
    layers, width = SIZES[size]
    config = AutoConfig.for_model(
        "bert",
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    torch.manual_seed(0)
    return AutoModelForMaskedLM.from_config(config).train()


def seconds_of(contender: str, size: str, options: argparse.Namespace, data: list[dict], tokenizer: Any) -> float:
    """Seconds of a step, or of a look of the callback."""
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=options.batch,
            max_steps=options.steps + SKIPPED,
            learning_rate=1e-4,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=10**6,
            use_cpu=not torch.cuda.is_available(),
            bf16=options.bf16,
            dataloader_pin_memory=False,
        )
        clock = Clock()
        if contender == "stock":
            collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
            trainer: Any = Trainer(
                model(size, options.dropout), args, data_collator=collator, train_dataset=data, callbacks=[clock]
            )
        else:
            proposal = "uniform/simple" if contender == "uniform" else "mapnet/pps~0.1"
            learning = MapNetTraining(target="gradient", every=4) if contender == "true" else MapNetTraining()
            trainer = MaskProposalTrainer(
                model(size, options.dropout),
                args,
                data,
                data[:16],
                processing_class=tokenizer,
                masking=proposal,
                mapnet=learning,
                callbacks=[clock],
            )
        if contender == "look":
            watch = VarianceWatch(trainer, data[:16], Watch(every=1))
            watch.look(trainer.state)
            return watch.seconds
        trainer.train()
        return clock.seconds


def spread(values: list[float], digits: int = 2) -> str:
    """Write median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def main() -> None:
    """Run the turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "mini"], choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--look", action="store_true", help="time the variance callback, too")
    parser.add_argument("--out", type=Path, help="page whose table is replaced")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    words = [*SPECIAL, *(f"w{i}" for i in range(VOCABULARY - len(SPECIAL)))]
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, model_max_length=512)
    rng = np.random.default_rng(0)
    rows = rng.integers(5, VOCABULARY, (options.batch * (options.steps + SKIPPED), LENGTH))
    rows[:, 0], rows[:, -1] = 2, 3
    data = [{"input_ids": row.tolist()} for row in rows]
    lines = [
        "| BERT | stock script, tokens/s | uniform / stock | MAPNet / uniform, time | with true norms | "
        "one look, uniform steps |",
        "|---|---|---|---|---|---|",
    ]
    for size in options.sizes:
        names = ("stock", "uniform", "mapnet", "true", *(("look",) if options.look else ()))
        found: dict[str, list[float]] = {name: [] for name in names}
        for number in range(options.rounds):
            for name, seconds in found.items():
                if name == "look" and number > 0:
                    continue
                seconds.append(seconds_of(name, size, options, data, tokenizer))
            print(size, {name: round(seconds[-1], 4) for name, seconds in found.items()}, flush=True)
        faster = [a / b for a, b in zip(found["stock"], found["uniform"], strict=True)]
        dearer, true = (
            [a / b for a, b in zip(found[name], found["uniform"], strict=True)] for name in ("mapnet", "true")
        )
        stock = options.batch * LENGTH / statistics.median(found["stock"])
        look = "–"
        if options.look:
            look = f"{found['look'][0] / found['uniform'][0]:.0f}"
        lines.append(f"| {size} | {stock:,.0f} | {spread(faster)} | {spread(dearer)} | {spread(true)} | {look} |")
        print(lines[-1], flush=True)
    table = "\n".join(lines)
    print(table)
    if options.out:
        page = options.out.read_text()
        block = f"<!-- trainer -->\n\n{table}\n\n<!-- end -->"
        page, count = re.subn(r"<!-- trainer -->.*?<!-- end -->", lambda _: block, page, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{options.out} has {count} places for the table; give it one")
        options.out.write_text(page)


if __name__ == "__main__":
    main()
