"""The always-on check, and the errors it must turn into one line."""

import pytest
import torch
from torch import nn

from gradvar.errors import GradvarError
from gradvar.measure import measure
from gradvar.persample.parameters import select


class Toy:
    """An objective over numbers: data and noise, one linear model."""

    levels = ("data", "noise")

    def __init__(self, model: nn.Module) -> None:
        self.model = model.double().eval()

    def __len__(self) -> int:
        return 20

    def draw(self, data, draws, seed):
        base = torch.tensor(list(data), dtype=torch.float64).repeat_interleave(draws[0])
        noise = torch.arange(draws[0], dtype=torch.float64).repeat(len(data))
        return {"x": torch.stack([base.sin(), (7 * base + 3 * noise + seed).cos()], dim=1)}

    def losses(self, batch):
        return self.model(batch["x"]).square().sum(1)


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.inner(x) * self.scale


class Functional(nn.Module):
    """Uses a Linear's weight behind its back."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x):
        return self.inner(x) + nn.functional.linear(x, self.inner.weight)


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x):
        return nn.functional.dropout(self.inner(x), 0.5, training=True)


class Unreached(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.idle = nn.Linear(2, 2)
        self.bare = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.inner(x)


def test_reached_but_uncovered_parameter_is_named():
    with pytest.raises(GradvarError, match=r"'scale' but no rule covers it; use --engine reference"):
        measure(Toy(Bare()), (6, 3), 2)


def test_the_reference_engine_covers_it():
    assert set(measure(Toy(Bare()), (6, 3), 2, engine="reference").moments) == {"inner.weight", "inner.bias", "scale"}


@pytest.mark.parametrize("model", [Functional, Random])
def test_what_the_hooks_cannot_see_is_noticed(model):
    with pytest.raises(GradvarError, match=r"'inner\.(weight|bias)'"):
        measure(Toy(model()), (6, 3), 2)


def test_unreached_parameters_are_zero_with_a_notice():
    measured = measure(Toy(Unreached()), (6, 3), 2)
    assert measured.notices == ("the loss never reaches 3 parameters (bare, idle.weight, idle.bias), counted as zero",)
    assert not measured.moments["bare"].cell_norm2.any()
    assert measured.moments["inner.weight"].cell_norm2.all()


def test_order_of_the_sentences_changes_no_estimate():
    """The sentences are the same, in another order; rounding aside, sums do not know it."""

    class Reversed(Toy):
        def draw(self, data, draws, seed):
            return super().draw([19 - i for i in data], draws, seed)

    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    forward = measure(Toy(model), (20, 3), 1).moments["weight"]
    backward = measure(Reversed(model), (20, 3), 1).moments["weight"]
    assert forward.between == pytest.approx(backward.between, rel=1e-10)
    assert forward.squares[:, 1].sum() == pytest.approx(backward.squares[:, 1].sum(), rel=1e-10)
    assert forward.mean_norm2 == pytest.approx(backward.mean_norm2, rel=1e-10)


def test_parameters_are_selected_by_regular_expression():
    assert [t.name for t in select(Unreached(), r"inner|bare")] == ["bare", "inner.weight", "inner.bias"]
    with pytest.raises(GradvarError, match="matches no trainable parameter"):
        select(Unreached(), "nothing")
    with pytest.raises(GradvarError, match="not a regular expression"):
        select(Unreached(), "(")
