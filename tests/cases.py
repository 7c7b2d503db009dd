"""The small models, tokenizers and corpora that the tests share."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, BertTokenizerFast, PreTrainedConfig

from gradvar.huggingface.corpus import Corpus
from gradvar.huggingface.masked_lm import MaskedLM

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)


def tokenizer(words: int = 55) -> BertTokenizerFast:
    """A WordPiece tokenizer over `w0 w1 …`; ids 0-4 are special, word i has id 5 + i."""
    vocabulary = {token: index for index, token in enumerate(SPECIAL + [f"w{i}" for i in range(words)])}
    return BertTokenizerFast(vocab=vocabulary, do_lower_case=True, model_max_length=512)


ARCHITECTURES = ("bert", "modernbert", "roberta", "distilbert", "albert", "electra", "deberta-v2")
# DeBERTa's relative positions have no dimension for the cells.
ONE_PASS = tuple(kind for kind in ARCHITECTURES if kind != "deberta-v2")


def mostly_full(values: Iterable[object], default: Callable[..., bool]) -> list[object]:
    """Parameters of a test, of which `make test` runs only those that `default` chooses."""
    every = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*v, marks=() if default(*v) else pytest.mark.full) for v in every]


# What the configurations call their dropout rates.
_RATES = {
    "distilbert": ("dropout", "attention_dropout"),
    "modernbert": ("embedding_dropout", "attention_dropout", "mlp_dropout"),
}


def config(
    kind: str, vocabulary: int, width: int, tied: bool, attention: str, rate: float | None = None
) -> PreTrainedConfig:
    """A two-layer configuration; RoBERTa's family counts positions from the padding's on; `rate` sets its dropout."""
    rates = dict.fromkeys(_RATES.get(kind, ("hidden_dropout_prob", "attention_probs_dropout_prob")), rate)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "hidden_size": width}
    special: dict[str, object] = {}
    if kind == "distilbert":
        sizes = {"n_layers": 2, "n_heads": 2, "hidden_dim": 24, "dim": width}
    elif kind == "modernbert":
        # Windows of 4 on each side: narrower than a sentence, and every padded position still sees a token
        # (transformers' eager attention gives NaN for a position whose window is all padding).
        ids = {"cls_token_id": CLS, "sep_token_id": SEP, "bos_token_id": CLS, "eos_token_id": SEP}
        special = {**ids, "local_attention": 8}
    elif kind in ("albert", "electra"):
        special = {"embedding_size": width // 2}
    elif kind == "deberta-v2":
        special = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}
    return AutoConfig.for_model(
        kind,
        vocab_size=vocabulary,
        max_position_embeddings=32,
        pad_token_id=PAD,
        tie_word_embeddings=tied,
        attn_implementation="eager" if kind == "deberta-v2" else attention,
        **sizes,
        **special,
        **({} if rate is None else rates),
    )


def model(
    kind: str,
    vocabulary: int = 60,
    tied: bool = True,
    attention: str = "sdpa",
    width: int = 16,
    rate: float | None = None,
) -> nn.Module:
    """A two-layer float64 masked LM whose every parameter, biases and norms included, is random."""
    torch.manual_seed(1)
    built = AutoModelForMaskedLM.from_config(config(kind, vocabulary, width, tied, attention, rate)).double().eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return built


def corpus(lengths: list[int], vocabulary: int = 60, seed: int = 0) -> Corpus:
    """Random sentences `[CLS] … [SEP]` of the given lengths, special tokens included."""
    rng = np.random.default_rng(seed)
    rows = (np.concatenate([[CLS], rng.integers(5, vocabulary, n - 2), [SEP]]) for n in lengths)
    return Corpus(tuple(row.astype(np.int32) for row in rows), "random", "0" * 64, max(lengths), 1e-3)


def objective(
    kind: str = "bert", padded: bool = False, sentences: int = 12, inner_pads: bool = False, **options: object
) -> MaskedLM:
    """A masked LM over random sentences; `padded` gives them different lengths.

    `inner_pads` puts a padding token inside each, as a token like any other: of padding behind the end the loss knows
    nothing, so its gradient is zero whether or not an embedding drops its row.
    """
    lengths = [12 - (3 * i) % 5 for i in range(sentences)] if padded else [12] * sentences
    text = corpus(lengths)
    if inner_pads:
        for row in text.sequences:
            row[3] = PAD
    keys = ("tied", "attention", "width", "rate")
    built = model(kind, **{key: options.pop(key) for key in keys if key in options})
    return MaskedLM(built, tokenizer(), text, mask_rate=options.pop("mask_rate", 0.3), **options)


def save_checkpoint(folder: Path, kind: str = "bert", change: Callable[[Path], None] | None = None) -> Path:
    """Write a checkpoint folder with its tokenizer, and let a test damage it."""
    model(kind).float().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    if change:
        change(folder)
    return folder


def write_text(path: Path, documents: int = 30, words: int = 60, seed: int = 0) -> Path:
    """Write documents of random words, a paragraph a line, blank lines between them."""
    rng = np.random.default_rng(seed)

    def paragraph() -> str:
        return " ".join(f"w{i}" for i in rng.integers(0, 55, words // 2))

    path.write_text("\n\n".join(f"{paragraph()}\n{paragraph()}" for _ in range(documents)) + "\n")
    return path
