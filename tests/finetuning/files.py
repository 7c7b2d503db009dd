"""Small task files, as GLUE writes them."""

import lzma
from pathlib import Path

import numpy as np

from gradvar.finetuning.tasks import TASKS, Task

HEADERS = {
    "cola": "source\tlabel\tmark\tsentence",
    "sst2": "sentence\tlabel",
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "mnli": "index\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label",
    "qnli": "index\tquestion\tsentence\tlabel",
    "rte": "index\tsentence1\tsentence2\tlabel",
    "wnli": "index\tsentence1\tsentence2\tlabel",
}
"""Of the official files, by task."""


def examples(task: Task, count: int, seed: int) -> list[tuple[tuple[str, ...], float]]:
    """Texts of random words whose first word tells the label."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        label = number % (len(task.labels) if task.labels else 6)
        texts = [[f"w{i}" for i in rng.integers(10, 55, 4)] for _ in task.texts]
        texts[-1][0] = f"w{label}"
        found.append((tuple(" ".join(text) for text in texts), float(label)))
    return found


def row(task: Task, texts: tuple[str, ...], label: float) -> str:
    """One line of a file."""
    written = f"{label:.3f}" if task.labels is None else task.labels[int(label)]
    values = dict(zip(task.texts, texts, strict=True)) | {task.label: written}
    return "\t".join(values.get(column, "x") for column in HEADERS[task.name].split("\t"))


def write(folder: Path, name: str, train: int = 64, dev: int = 32, xz: bool = False) -> Path:
    """Write the files of a task."""
    task = TASKS[name]
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (part, count) in enumerate((("train", train), *((part, dev) for part in task.dev))):
        lines = [HEADERS[name], *(row(task, *example) for example in examples(task, count, seed))]
        raw = ("\n".join(lines) + "\n").encode()
        path = folder / f"{task.files}.{part}.tsv"
        if xz:
            path.with_name(f"{path.name}.xz").write_bytes(lzma.compress(raw))
        else:
            path.write_bytes(raw)
    return folder
