"""The always-on check, and the errors it must turn into one line."""

import pytest
import torch
import torch.utils.checkpoint
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


class Uncalled(nn.Module):
    """Uses nothing of a Linear but its weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.inner = nn.Linear(2, 2, bias=False)

    def forward(self, x):
        return nn.functional.linear(self.first(x), self.inner.weight)


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


class Mixed(nn.Module):
    """Every cell sees the mean of all: no cell has a gradient of its own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x):
        return self.inner(x) - self.inner(x).mean(0)


class Places(nn.Module):
    """Position embeddings without a dimension for the cells, of which there are as many as positions."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.places = nn.Embedding(6, 2)

    def forward(self, x):
        at = self.places(torch.arange(6))
        return self.inner(x + at.tanh().sum(0) + (at * at.roll(1, 0)).sum(0))


def test_bare_parameters_are_covered():
    measured = measure(Toy(Bare()), (6, 3), engine="onepass")
    assert set(measured.moments) == {"inner.weight", "inner.bias", "scale"}
    assert measured.engine == "onepass"


@pytest.mark.parametrize("model", [Functional, Places])
def test_what_the_hooks_cannot_see_is_noticed(model):
    """`Places`: the sum over the cells is right, each cell's gradient is not."""
    with pytest.raises(GradvarError, match=r"parameter '(inner.weight|places.weight)': .*; use --engine reference"):
        measure(Toy(model()), (6, 3), engine="onepass")


def test_a_module_that_is_never_called_is_named():
    words = "'inner.weight': the model uses it without calling the module that holds it; use --engine reference"
    with pytest.raises(GradvarError, match=words):
        measure(Toy(Uncalled()), (6, 3), 2, engine="onepass")


@pytest.mark.parametrize("model", [Functional, Places, Uncalled])
def test_and_measured_by_the_reference_engine_with_a_notice(model):
    measured = measure(Toy(model()), (6, 3))
    assert measured.engine == "reference"
    assert measured.notices[0].startswith("the slow reference engine was used, as the one-pass engine cannot")


def test_cells_that_mix_are_refused_by_every_engine():
    for engine in ("auto", "onepass", "reference"):
        with pytest.raises(GradvarError, match="mix cells"):
            measure(Toy(Mixed()), (6, 3), engine=engine)


def test_a_random_model_is_refused():
    with pytest.raises(GradvarError, match=r"the model is random: .* make that randomness a level"):
        measure(Toy(Random()), (6, 3))


def test_unreached_parameters_are_zero_with_a_notice():
    measured = measure(Toy(Unreached()), (6, 3))
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
    forward = measure(Toy(model), (20, 3)).moments["weight"]
    backward = measure(Reversed(model), (20, 3)).moments["weight"]
    assert forward.between == pytest.approx(backward.between, rel=1e-10)
    assert forward.squares.sum() == pytest.approx(backward.squares.sum(), rel=1e-10)
    assert forward.mean_norm2 == pytest.approx(backward.mean_norm2, rel=1e-10)


def test_parameters_are_selected_by_regular_expression():
    assert [t.name for t in select(Unreached(), r"inner|bare")] == ["bare", "inner.weight", "inner.bias"]
    with pytest.raises(GradvarError, match="matches no trainable parameter"):
        select(Unreached(), "nothing")
    with pytest.raises(GradvarError, match="not a regular expression"):
        select(Unreached(), "(")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_of_half_precision_are_refused_by_name(dtype):
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(GradvarError, match=f"^parameter 'bare' is {kind}, too coarse for a variance; use model.float"):
        select(Unreached().to(dtype))
    assert len(select(Unreached().float())) > 0


class Checkpointed(Bare):
    """Reentrant checkpointing of a part, or of all of the model."""

    def __init__(self, everything):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.everything = everything

    def forward(self, x):
        x = x.requires_grad_() if self.everything else self.first(x)
        return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=True)


@pytest.mark.parametrize("everything", [True, False])
def test_reentrant_checkpointing_is_refused_by_name(everything):
    with pytest.raises(GradvarError, match="reentrant gradient checkpointing"):
        measure(Toy(Checkpointed(everything)), (6, 3))
