"""The encoder of a recipe: an architecture from scratch, or a checkpoint, which must go with the tokenizer."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from gradvar.errors import GradvarError
from gradvar.huggingface.checkpoint import load_checkpoint, longest_sequence, one_line, quiet
from gradvar.masking.proposal import nearest
from gradvar.training.recipe import Model

_READ = {"deberta-v2": ("position_buckets", "share_att_key", "norm_rel_ebd", "conv_kernel_size", "conv_act")}
"""What the code of an architecture reads though its configuration class does not list it."""


def build_encoder(spec: Model, tokenizer: Any, max_length: int, seed: int) -> nn.Module:
    """Make the masked LM that a recipe asks for, in training mode.

    Args:
        spec: The model's part of the recipe.
        tokenizer: Of the data.
        max_length: Tokens of a sequence.
        seed: Of first weights.

    Returns:
        The model, in float32 on the CPU.

    Raises:
        GradvarError: If there is no such architecture or checkpoint, if a key of its configuration is none, or if it
            does not go with the tokenizer.
    """
    with torch.random.fork_rng(devices=[]):
        if spec.source is None:
            model = _from_scratch(spec, tokenizer, seed)
        else:
            model = _from_checkpoint(spec.source, tokenizer, seed)
    longest = longest_sequence(model, tokenizer)
    if max_length > longest:
        raising = ", or raise model.config.max_position_embeddings" if spec.source is None else ""
        raise GradvarError(
            f"data.max_length {max_length} is beyond the {longest} positions of the model; lower it{raising}"
        )
    return model.train()


def _from_scratch(spec: Model, tokenizer: Any, seed: int) -> nn.Module:
    from transformers import AutoConfig, AutoModelForMaskedLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = spec.architecture or ""
    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise GradvarError(
            f"model.architecture '{kind}' has no masked LM{nearest(kind, MODEL_FOR_MASKED_LM_MAPPING_NAMES)}"
        )
    special = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep", "bos", "eos")
    }
    for name, other in (("bos", "cls"), ("eos", "sep")):
        if special[f"{name}_token_id"] is None:
            special[f"{name}_token_id"] = special[f"{other}_token_id"]
    default: Any = AutoConfig.for_model(kind)
    if default.is_encoder_decoder or spec.config.get("is_decoder"):
        what = "is an encoder-decoder" if default.is_encoder_decoder else "with is_decoder is a causal LM"
        raise GradvarError(f"model.architecture '{kind}' {what}, which predicts the next token; give a masked LM")
    rows = spec.config.get("vocab_size", len(tokenizer))
    if isinstance(rows, int) and rows < len(tokenizer):
        raise GradvarError(
            f"model.config.vocab_size {rows} is less than the tokenizer's {len(tokenizer)} tokens; leave it out"
        )
    known = {*default.to_dict(), *default.attribute_map, *_READ.get(kind, ())}
    for key in spec.config:
        if key not in known:
            raise GradvarError(f"model.config has no key '{key}' for '{kind}'{nearest(key, sorted(known))}")
    try:
        own = copy.deepcopy(spec.config)  # the library fills what is nested in it
        config = AutoConfig.for_model(kind, **{"vocab_size": len(tokenizer), **special, **own})
        with quiet():
            torch.manual_seed(seed)
            model: nn.Module = AutoModelForMaskedLM.from_config(config)
    except Exception as error:  # a library's whole variety of complaints about sizes that do not fit
        raise GradvarError(f"model.config makes no '{kind}' ({_complaint(error)}); correct it") from error
    return model.float()


def _complaint(error: Exception) -> str:
    """Say what an error says; of a KeyError that is a bare key, or a sentence in quotes."""
    if not isinstance(error, KeyError) or not error.args:
        return one_line(error)
    key = error.args[0]
    return one_line(Exception(key)) if " " in str(key) else f"it does not know {key!r}"


def _from_checkpoint(source: str, tokenizer: Any, seed: int) -> nn.Module:
    loaded = load_checkpoint(source, allow_random_head=True, seed=seed)
    mine, theirs = tokenizer.get_vocab(), loaded.tokenizer.get_vocab()
    if mine != theirs:
        other = next((token for token, i in theirs.items() if mine.get(token) != i), None) or "a token"
        raise GradvarError(
            f"the vocabulary of the data ({len(mine):,} tokens) is not that of {source} ({len(theirs):,}; '{other}' "
            "differs); leave data.tokenizer out to take the checkpoint's"
        )
    return loaded.model
