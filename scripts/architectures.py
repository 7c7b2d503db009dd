"""Which masked-LM architectures of transformers the engines measure: the table in docs/architectures.md.

Every configuration of `AutoModelForMaskedLM` is built at a small size in float64, with random weights, and its
engine is compared with a backward pass a cell, over padded sentences: *exact* means that no parameter is off by more
than 1e-9 (cell norms, mean gradients, sums of squares within a sentence). Two architectures that run in float32 only
are held to 1e-5. Where the one-pass engine refuses or fails, the reference engine is tried in the same way, and the
reason is what `gradvar decompose` tells its user.

    python scripts/architectures.py --out docs/architectures.md
"""

import argparse
import inspect
import logging
import platform
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradvar import MaskedLM, check_engine, decompose
from gradvar.errors import GradvarError
from gradvar.huggingface.corpus import Corpus

EXACT, EXACT_SINGLE = 1e-9, 1e-5
LARGEST = 2_000_000  # parameters: what knows none of the small sizes is left out
VOCABULARY = 60
# Whatever a configuration calls its sizes; only what it knows is set.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "d_model": 16,
    "emb_dim": 16,
    "dim": 16,
    "embedding_size": 16,
    "intermediate_size": 24,
    "d_inner": 24,
    "hidden_dim": 24,
    "num_hidden_layers": 2,
    "n_layers": 2,
    "num_attention_heads": 2,
    "n_heads": 2,
    "n_head": 2,
    "d_head": 8,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "type_vocab_size": 2,
    "local_attention": 8,
    "attention_window": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "block_sizes": [1, 1],
    "entity_vocab_size": 20,
    "entity_emb_size": 16,
    "true_hidden_size": 16,
    "intra_bottleneck_size": 16,
    "languages": ["en_XX"],
    "default_language": "en_XX",
    "mask_token_id": 4,
    "bigram_hash_vocab_size": 50,
}
TEXT = {name: value for name, value in SMALL.items() if name not in ("head_dim", "num_key_value_heads")}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 16, "patch_size": 8, "model_type": "siglip_vision_model"}
EXTRA: dict[str, dict[str, Any]] = {
    "big_bird": {"attention_type": "original_full"},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 8,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    },
    "squeezebert": {"q_groups": 2, "k_groups": 2, "v_groups": 2, "intermediate_groups": 2, "output_groups": 2},
    "convbert": {"head_ratio": 1, "conv_kernel_size": 3},
    "reformer": {"is_decoder": False, "axial_pos_shape": [4, 8], "axial_pos_embds_dim": [8, 8]},
    "modernvbert": {"text_config": TEXT | {"model_type": "modernbert"}, "vision_config": VISION, "image_token_id": 59},
    "neomme": {"head_dim": 16, "embedding_rank": 8, "hidden_size": 32},
    "perceiver": {"d_latents": 16, "num_latents": 6, "num_self_attends_per_block": 2}
    | {"num_self_attention_heads": 2, "num_cross_attention_heads": 2},
    "roc_bert": {"pronunciation_embed_dim": 8, "pronunciation_vocab_size": 20}
    | {"shape_embed_dim": 8, "shape_vocab_size": 30},
    "ultravbert": {"text_config": SMALL | {"model_type": "ultrabert"}, "vision_config": VISION, "image_token_id": 59},
}
SINGLE = {
    "longformer": "its positions come before the cells; in float32, as its softmax makes infinities of other types' "
    "masks",
    "mra": "in float32, the only type that it mixes with; without a GPU its attention is zero",
}
NOTES = {
    "big_bird": "with attention_type original_full",
    "neomme": "its head multiplies by the tied projection's weight itself",
    "nystromformer": "with num_landmarks = segment_means_seq_len, the default; otherwise it takes no padded sentences",
    "reformer": "its reversible layers give no gradient in evaluation mode",
}


class Tokenizer:
    """Just enough of one: five special tokens."""

    mask_token_id, pad_token_id, all_special_ids = 4, 0, [0, 1, 2, 3, 4]

    def __len__(self) -> int:
        return VOCABULARY

    def get_vocab(self) -> dict[str, int]:
        """Name the tokens by their ids."""
        return {f"w{word}": word for word in range(VOCABULARY)}


def build(kind: str) -> torch.nn.Module:
    """Build a small model of an architecture, every parameter random."""
    from transformers import AutoModelForMaskedLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[kind]
    known = set(inspect.signature(config_class.__init__).parameters) | set(config_class.attribute_map)
    known |= {name for base in config_class.__mro__ for name in getattr(base, "__annotations__", {})}
    options = {name: value for name, value in SMALL.items() if name in known} | EXTRA.get(kind, {})
    config = config_class(**options)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForMaskedLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"its smallest build here has {size / 1e6:.0f} M parameters")
    torch.manual_seed(0)
    dtype = torch.float32 if kind in SINGLE else torch.float64
    model = AutoModelForMaskedLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def corpus(lengths: tuple[int, ...] = (12, 9, 12, 7, 11, 12, 8, 10)) -> Corpus:
    """Make random sentences of several lengths."""
    rng = np.random.default_rng(0)
    rows = [np.concatenate([[2], rng.integers(5, VOCABULARY, n - 2), [3]]).astype(np.int32) for n in lengths]
    return Corpus(tuple(rows), "random", "0" * 64, max(lengths), 0.0)


def first_line(error: Exception) -> str:
    """Shorten an error to its first line."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def verdict(kind: str) -> tuple[str, str]:
    """Return (exact, via reference or refused; the error or the reason)."""
    try:
        model = build(kind)
    except Exception as error:  # whatever a library raises for a configuration it does not like
        return "refused", f"no model of small size could be built ({first_line(error)})"
    if model.config.is_encoder_decoder:
        return "refused", "an encoder-decoder, which predicts the next token"
    try:
        objective = MaskedLM(model, Tokenizer(), corpus(), mask_rate=0.3)
    except GradvarError as error:
        return "refused", first_line(error)
    why = ""
    for engine, name in (("onepass", "exact"), ("reference", "via reference")):
        try:
            found = check_engine(objective, data=4, draws=2, engine=engine)
        except Exception as error:  # whatever a model raises when it is run in another way
            why += f"{engine}: {first_line(error)}. "
            continue
        if found.error <= (EXACT_SINGLE if kind in SINGLE else EXACT):
            said = f"{len(found.errors)} parameters, error {found.error:.0e}"
            return name, said if engine == "onepass" else f"{said}; {notice(objective)}"
        why += f"{engine}: '{found.worst}' is off by {found.error:.1e}. "
    return "refused", why.strip()


def notice(objective: MaskedLM) -> str:
    """Return why `decompose` turns to the reference engine."""
    said = decompose(objective, sentences=len(objective), masks=2).notices[0]
    return said.removeprefix("the slow reference engine was used, as the one-pass engine cannot measure this: ")


def main() -> None:
    """Try every architecture and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table to this file; otherwise print it")
    parser.add_argument("--only", help="comma-separated architectures")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as NAMES

    rows = []
    for kind in args.only.split(",") if args.only else sorted(NAMES):
        status, detail = verdict(kind)
        detail = "; ".join(filter(None, (detail, SINGLE.get(kind), NOTES.get(kind))))
        rows.append((kind, NAMES[kind], status, detail))
        print(f"{kind:<22} {status:<14} {detail}", flush=True)
    counts = {status: sum(row[2] == status for row in rows) for status in ("exact", "via reference", "refused")}
    text = [
        "# Architectures",
        "",
        "Every architecture of transformers' `AutoModelForMaskedLM`, tried at small size in float64 over padded",
        "sentences, against a backward pass a cell. *Exact*: the one-pass engine, no parameter off by more than 1e-9.",
        "*Via reference*: the reference engine, by the same standard, and why. Two run in float32 only, where the",
        "standard is 1e-5. Written by `python scripts/architectures.py --out docs/architectures.md` with transformers",
        f"{version('transformers')}, torch {version('torch').split('+')[0]}, Python {platform.python_version()}:",
        ", ".join(f"{n} {status}" for status, n in counts.items()) + ".",
        "",
        "| architecture | model | engine | error, or why |",
        "|---|---|---|---|",
        *(f"| {kind} | {name} | {status} | {detail.replace('|', '/')} |" for kind, name, status, detail in rows),
        "",
    ]
    if args.out and not args.only:
        args.out.write_text("\n".join(text))


if __name__ == "__main__":
    main()
