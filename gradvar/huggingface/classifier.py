"""A checkpoint's encoder under a fresh head for the classification of texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gradvar.errors import GradvarError
from gradvar.huggingface.checkpoint import attempt, check_body, check_config, quiet, weight_files


def load_classifier(folder: Path, labels: int | None, seed: int) -> Any:
    """Load an encoder and put a fresh head on it.

    Args:
        folder: Of a masked LM. What its head shares with a classifier's, such as ModernBERT's dense layer, is taken.
        labels: How many there are; None for a score, which is trained on its squared error.
        seed: Of the head's first weights.

    Returns:
        ``AutoModelForSequenceClassification`` in float32 on the CPU.

    Raises:
        GradvarError: If it is no whole masked LM, or transformers has no such head for its architecture.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, set_seed
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    if (architecture := check_config(folder)) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise GradvarError(
            f"{folder} is of architecture '{architecture}', which transformers has no text classifier for"
        )
    config = json.loads((folder / "config.json").read_text())
    if any("ForSequenceClassification" in name for name in config.get("architectures") or ()):
        raise GradvarError(
            f"{folder} is a text classifier already, with a head of its own; give the masked LM before it"
        )
    weight_files(folder)
    kind = "regression" if labels is None else "single_label_classification"
    with quiet():
        set_seed(seed)
        model, report = attempt(
            folder,
            "model",
            lambda: AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=labels or 1,
                problem_type=kind,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # such as those of a classifier of another task
            ),
        )
    body = f"{model.base_model_prefix}."
    check_body(folder, model, report, fresh=rf"(?!{body})|.*pooler")
    lacking = [key for key in report["missing_keys"] if key.startswith(body) and "pooler" not in key]
    if lacking:
        raise GradvarError(f"{folder}: weights lack '{sorted(lacking)[0]}'; they are not for this model")
    return model
