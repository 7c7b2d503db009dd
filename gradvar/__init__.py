"""Where the noise in a pretraining gradient comes from, and what would remove it.

import gradvar
objective = gradvar.MaskedLM.from_checkpoint("checkpoint/", "text.txt")
print(gradvar.decompose(objective))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradvar.comparing import compare
    from gradvar.decomposition.estimate import Estimate
    from gradvar.demo import DEMO_CHECKPOINT, DEMO_TEXT
    from gradvar.dropout import keyed_dropout
    from gradvar.errors import GradvarError
    from gradvar.finetuning.finetune import finetune
    from gradvar.finetuning.tuning import FinetuneSettings
    from gradvar.huggingface.corpus import Corpus, load_corpus
    from gradvar.huggingface.masked_lm import MaskedLM
    from gradvar.huggingface.texts import from_texts
    from gradvar.mapnet.network import MapNet
    from gradvar.masking.cells import Cells
    from gradvar.masking.corruption import Replacement
    from gradvar.masking.proposal import Proposal, parse_proposal
    from gradvar.objective import Objective
    from gradvar.report.comparison import Comparison
    from gradvar.report.finetuned import Finetuned
    from gradvar.report.result import Decomposition, Layer
    from gradvar.report.runs import RunComparison
    from gradvar.report.tokens import TokenScores
    from gradvar.report.writer import write_report
    from gradvar.runs.comparing import compare_runs
    from gradvar.shading import score_tokens
    from gradvar.study import decompose
    from gradvar.training.joint import JointModel
    from gradvar.training.recipe import Evaluation, MapNetTraining, Masking
    from gradvar.training.trainer import MaskProposalTrainer
    from gradvar.verify import EngineCheck, check_engine

# Public names are imported when first used, so that `gradvar --help` need not import torch.
_HOMES = {
    "Cells": "gradvar.masking.cells",
    "Comparison": "gradvar.report.comparison",
    "Corpus": "gradvar.huggingface.corpus",
    "DEMO_CHECKPOINT": "gradvar.demo",
    "DEMO_TEXT": "gradvar.demo",
    "Decomposition": "gradvar.report.result",
    "EngineCheck": "gradvar.verify",
    "Estimate": "gradvar.decomposition.estimate",
    "Evaluation": "gradvar.training.recipe",
    "FinetuneSettings": "gradvar.finetuning.tuning",
    "Finetuned": "gradvar.report.finetuned",
    "GradvarError": "gradvar.errors",
    "JointModel": "gradvar.training.joint",
    "Layer": "gradvar.report.result",
    "MapNet": "gradvar.mapnet.network",
    "MapNetTraining": "gradvar.training.recipe",
    "MaskProposalTrainer": "gradvar.training.trainer",
    "MaskedLM": "gradvar.huggingface.masked_lm",
    "Masking": "gradvar.training.recipe",
    "Objective": "gradvar.objective",
    "Proposal": "gradvar.masking.proposal",
    "Replacement": "gradvar.masking.corruption",
    "RunComparison": "gradvar.report.runs",
    "TokenScores": "gradvar.report.tokens",
    "check_engine": "gradvar.verify",
    "compare": "gradvar.comparing",
    "compare_runs": "gradvar.runs.comparing",
    "decompose": "gradvar.study",
    "finetune": "gradvar.finetuning.finetune",
    "from_texts": "gradvar.huggingface.texts",
    "keyed_dropout": "gradvar.dropout",
    "load_corpus": "gradvar.huggingface.corpus",
    "parse_proposal": "gradvar.masking.proposal",
    "score_tokens": "gradvar.shading",
    "write_report": "gradvar.report.writer",
}

__all__ = [
    "DEMO_CHECKPOINT",
    "DEMO_TEXT",
    "Cells",
    "Comparison",
    "Corpus",
    "Decomposition",
    "EngineCheck",
    "Estimate",
    "Evaluation",
    "FinetuneSettings",
    "Finetuned",
    "GradvarError",
    "JointModel",
    "Layer",
    "MapNet",
    "MapNetTraining",
    "MaskProposalTrainer",
    "MaskedLM",
    "Masking",
    "Objective",
    "Proposal",
    "Replacement",
    "RunComparison",
    "TokenScores",
    "check_engine",
    "compare",
    "compare_runs",
    "decompose",
    "finetune",
    "from_texts",
    "keyed_dropout",
    "load_corpus",
    "parse_proposal",
    "score_tokens",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name."""
    if name not in _HOMES:
        raise AttributeError(f"module 'gradvar' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*globals(), *__all__])
