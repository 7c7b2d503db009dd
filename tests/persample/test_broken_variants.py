"""Engines broken on purpose, each in a way that a per-sample engine may well be: every comparison must notice.

Three comparisons: that of the exactness tests (`oracle.errors`), the one that users run (`check_engine`), and the
one that runs in every study. The last one sees the sum over the first two data and the norm of their last cell.
"""

import pytest
import torch

from gradvar import check_engine, decompose
from gradvar.decomposition.accumulator import MomentAccumulator
from gradvar.errors import EngineError
from gradvar.persample import onepass, rules
from gradvar.persample.onepass import OnePass
from gradvar.persample.parameters import select
from tests import cases
from tests.persample import oracle

COUNTS = 4, 3


def padding_row_ignored(patch):
    """The embedding's rule adds up the padding row like any other."""

    def without_padding(call):
        padding, call.module.padding_idx = call.module.padding_idx, None
        try:
            return rules.embedding_weight(call)
        finally:
            call.module.padding_idx = padding

    patch.setattr(onepass, "embedding_weight", without_padding)
    patch.setitem(rules._RULES[torch.nn.Embedding], "weight", without_padding)


def tied_cross_term_dropped(patch):
    """Decoder and embedding are reduced apart: the squares of two summands, without twice their product."""
    reduce = OnePass._reduce

    def apart(self, calls, whole, first):
        for gathers in (True, False):
            chosen = [(rule, call) for rule, call in calls if (rule is rules.embedding_weight) == gathers]
            if not chosen:
                continue
            sums = whole.tables.sums
            part = MomentAccumulator(*sums.shape, (whole.data, *whole.draws), sums.dtype)
            reduce(self, chosen, part, first)
            for name in ("sums", "squares", "cell_norm2"):
                getattr(whole.tables, name).add_(getattr(part.tables, name))

    patch.setattr(OnePass, "_reduce", apart)


def broadcast_not_expanded(patch):
    """What has one row for all cells, such as the position ids, keeps it."""
    patch.setattr(onepass, "_expand", lambda x, cells: x)


def mean_over_cells(patch):
    """The mean of the losses is differentiated in place of their sum."""
    accumulate = OnePass.accumulate

    def scaled(self, losses, batch, accumulators, first):
        cells = len(next(iter(batch.values())))
        return cells * accumulate(self, lambda b: losses(b) / cells, batch, accumulators, first)

    patch.setattr(OnePass, "accumulate", scaled)


def repeated_module_counted_once(patch):
    """Of the calls of one module, one is kept."""
    hand_over = onepass._Capture._hand_over

    def once(self, key):
        by_module = {call.module: (rule, call) for rule, call in self._calls[key]}
        self._calls[key] = list(by_module.values())
        hand_over(self, key)

    patch.setattr(onepass._Capture, "_hand_over", once)


# The fault, an architecture in which it shows, whether the decoder is tied, and a parameter that it must hit.
FAULTS = [
    *((padding_row_ignored, kind, tied, "word_embeddings.weight") for kind in ("bert", "roberta") for tied in (0, 1)),
    (padding_row_ignored, "modernbert", 1, "tok_embeddings.weight"),
    *((tied_cross_term_dropped, kind, 1, "word_embeddings.weight") for kind in ("bert", "distilbert", "albert")),
    (tied_cross_term_dropped, "modernbert", 1, "tok_embeddings.weight"),
    *((broadcast_not_expanded, kind, 1, ".position_embeddings.weight") for kind in ("bert", "distilbert", "electra")),
    *((mean_over_cells, kind, 1, "") for kind in cases.ONE_PASS),
    *((repeated_module_counted_once, "albert", tied, "full_layer") for tied in (0, 1)),
]


def chosen(fault, kind, tied, name):
    """One architecture a fault, and for one ModernBERT, too, whose parameters have names of their own."""
    if kind == "modernbert":
        return fault is tied_cross_term_dropped
    return tied and (kind == "bert" or fault is repeated_module_counted_once)


def study(kind, tied):
    """An objective whose sentences have several lengths and a padding token inside, and all its targets."""
    objective = cases.objective(kind, padded=True, inner_pads=True, tied=bool(tied))
    return objective, select(objective.model)


def errors(objective, targets):
    batch = objective.draw(range(COUNTS[0]), COUNTS[1:], 3)
    return oracle.errors(OnePass(objective.model, targets), objective, batch, targets, COUNTS)


@pytest.mark.parametrize(("fault", "kind", "tied", "name"), cases.mostly_full(FAULTS, chosen))
def test_a_broken_engine_is_noticed_by_every_comparison(fault, kind, tied, name, monkeypatch):
    objective, targets = study(kind, tied)
    assert max(errors(objective, targets).values()) <= oracle.EXACT
    right = decompose(objective, sentences=8, masks=2, engine="onepass")
    fault(monkeypatch)

    wrong = [found for found, error in errors(objective, targets).items() if not error <= 1e-3]
    assert any(name in found for found in wrong), wrong

    checked = check_engine(objective)
    assert not checked.passed
    assert any(name in found for found, error in checked.errors.items() if not error <= checked.tolerance)

    with pytest.raises(EngineError, match=r"parameter '.*': .*; use --engine reference"):
        decompose(objective, sentences=8, masks=2, engine="onepass")

    # And the choice of `auto` measures by the other engine what the broken one cannot.
    found = decompose(objective, sentences=8, masks=2)
    assert found.study["engine"] == "reference"
    assert found.components["mask"].estimate == pytest.approx(right.components["mask"].estimate, rel=1e-9)


def test_what_the_check_of_every_study_cannot_see(monkeypatch):
    """A fault in one cell's norm that leaves the sum as it is, unless it is the last of the first data.

    `check_engine` compares every cell, so it does see it.
    """
    accumulate = OnePass.accumulate

    def first_cell_twice(self, losses, batch, accumulators, first):
        values = accumulate(self, losses, batch, accumulators, first)
        for accumulator in accumulators.values():
            accumulator.tables.cell_norm2[first, 0] *= 4
        return values

    objective, targets = study("bert", 1)
    monkeypatch.setattr(OnePass, "accumulate", first_cell_twice)
    assert max(errors(objective, targets).values()) > 0.9
    assert not check_engine(objective).passed
    assert decompose(objective, sentences=8, masks=2, engine="onepass").study["engine"] == "onepass"
