"""Each rule alone, on modules used in every way that it claims to cover."""

import warnings

import pytest
import torch
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradvar.decomposition.accumulator import MomentAccumulator
from gradvar.errors import GradvarError
from gradvar.persample import onepass
from gradvar.persample.functional import vjp_rule
from gradvar.persample.onepass import OnePass
from gradvar.persample.parameters import select
from gradvar.persample.rules import Call, rules_of
from tests.persample import oracle

SMALL = st.integers(1, 3)
SHAPES = {"data": SMALL, "draws": SMALL, "positions": SMALL, "width": st.integers(2, 5)}


class Tied(nn.Module):
    """An embedding used as decoder too, with a padding row, broadcast positions, and a layer called twice."""

    def __init__(self, width: int, padding: int | None = 0) -> None:
        super().__init__()
        self.words = nn.Embedding(7, width, padding_idx=padding)
        self.places = nn.Embedding(6, width)
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.decoder = nn.Linear(width, 7)
        self.decoder.weight = self.words.weight

    def forward(self, ids):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]).unsqueeze(0))
        x = x + torch.tanh(self.mix(self.norm(x)))
        return self.decoder(torch.tanh(self.mix(x)))


def both(model, losses, batch, data, draws):
    """Each parameter's tables by one pass, and the loop's gradients `[cells, rows, columns]`."""
    targets = select(model)
    found = oracle.accumulate(OnePass(model, targets), losses, batch, targets, (data, draws))
    return zip(targets, found, oracle.explicit(losses, batch, targets), strict=True)


def compare(model, losses, batch, data, draws):
    """Cell norms, sums of squares and the grand mean of every parameter, against the loop."""
    for target, found, g in both(model, losses, batch, data, draws):
        by_datum = g.view(data, draws, -1)
        scale = float(g.square().sum()) + 1e-30
        close = {"rtol": 1e-9, "atol": 1e-13 * scale}
        assert torch.allclose(found.cell_norm2.flatten(), g.square().sum((1, 2)), **close), target.name
        within = (by_datum - by_datum.mean(1, keepdim=True)).square().sum((1, 2))
        assert torch.allclose(found.squares[:, 0], within, **close), target.name
        between = (by_datum.mean(1) - by_datum.mean((0, 1))).square().sum()
        assert torch.allclose(found.between, between, **close), target.name
        assert torch.allclose(found.sums.flatten(), by_datum.mean(1).sum(0), **close), target.name


@settings(max_examples=25, deadline=None)
@given(**SHAPES, padding=st.sampled_from([None, 0, 3]), block=st.sampled_from([1, 30, 1 << 20]))
def test_tied_broadcast_repeated(data, draws, positions, width, padding, block):
    torch.manual_seed(data + 10 * draws + 100 * positions + 1000 * width)
    model = Tied(width, padding).double()
    batch = {"ids": torch.randint(0, 7, (data * draws, positions))}

    def losses(b):
        return model(b["ids"]).square().sum((1, 2)) + model(b["ids"]).sum((1, 2))

    before = onepass._BLOCK_CPU
    try:
        onepass._BLOCK_CPU = block
        compare(model, losses, batch, data, draws)
    finally:
        onepass._BLOCK_CPU = before


@settings(max_examples=25, deadline=None)
@given(**SHAPES, extra=st.integers(0, 2))
def test_linear_and_norm_over_any_middle_dimensions(data, draws, positions, width, extra):
    torch.manual_seed(data + 10 * draws + 100 * positions + 1000 * width)
    model = nn.Sequential(nn.Linear(width, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False)).double()
    shape = (data * draws, *[positions] * extra, width)
    batch = {"x": torch.randn(shape, dtype=torch.float64)}
    compare(model, lambda b: model(b["x"]).cos().flatten(1).sum(1), batch, data, draws)


@pytest.mark.parametrize("block", [8, 1 << 20])
def test_untied_embedding_keeps_to_the_rows_that_occur(monkeypatch, block):
    """A table too large for a block goes through the sparse path; the padding row gets nothing.

    One that fits a block, and is too large to be its own sketch, is formed whole.
    """
    monkeypatch.setattr(onepass, "_BLOCK_CPU", block)
    model = nn.Sequential(nn.Embedding(400, 3, padding_idx=4), nn.Linear(3, 1)).double()
    batch = {"ids": torch.tensor([[4, 1, 1], [2, 4, 4], [4, 4, 4], [49, 0, 1], [7, 7, 7], [1, 2, 3]])}
    compare(model, lambda b: model(b["ids"]).sin().sum((1, 2)), batch, data=3, draws=2)


def test_a_branch_that_the_loss_ignores():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "shared": nn.Linear(2, 2)}).double()

    def losses(b):
        model["shared"](b["x"])  # this call's output gets no gradient
        return model["shared"](model["used"](b["x"])).square().sum(1)

    compare(model, losses, {"x": torch.randn(4, 2, dtype=torch.float64)}, data=2, draws=2)


class Bare(nn.Module):
    """Parameters of its own beside a child's, named inputs, two outputs of which one may be ignored."""

    def __init__(self, ignore: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.randn(2, 3))
        self.shift = nn.Parameter(torch.randn(3))
        self.ignore = ignore

    def parts(self, x, *, factor):
        y = self.inner(x) * self.scale[0] * factor
        return {"y": y + self.shift, "z": (x * self.scale[1]).sum(-1)}


class Called(Bare):
    def forward(self, x, *, factor):
        return self.parts(x, factor=factor)


class Twice(nn.Module):
    def __init__(self, ignore: bool) -> None:
        super().__init__()
        self.body = Called(ignore)

    def forward(self, x):
        first = self.body(x=x, factor=torch.tensor([2.0]).double())
        second = self.body(first["y"].tanh(), factor=x.cos())
        return second["y"].sum(-1) + (0 if self.body.ignore else second["z"] * first["z"])


@settings(max_examples=20, deadline=None)
@given(data=SMALL, draws=st.integers(2, 3), positions=SMALL, ignore=st.booleans())
def test_any_module_with_bare_parameters(data, draws, positions, ignore):
    torch.manual_seed(data + 10 * draws + 100 * positions)
    model = Twice(ignore).double()
    batch = {"x": torch.randn(data * draws, positions, 3, dtype=torch.float64)}
    compare(model, lambda b: model(b["x"]).sin().sum(1), batch, data, draws)


class Hard(nn.Module):
    """Looks at a value, which `vmap` forbids: each cell runs by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return x * self.scale if float(x.sum()) > -1e9 else x


class Options(dict):
    """A container that `torch` does not look into."""


class Powers(nn.Module):
    """Takes more than tensors."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x, options):
        return self.scale * x ** options["power"]


class Configured(nn.Module):
    """Hands a module options beside its input."""

    def __init__(self):
        super().__init__()
        self.powers = Powers()

    def forward(self, x):
        return self.powers(x, Options(power=2))


OTHERS = {
    "options": lambda: nn.Sequential(nn.Linear(3, 3), Configured()),
    "a value looked at": lambda: nn.Sequential(nn.Linear(3, 3), Hard()),
    "LSTM": lambda: nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 3, batch_first=True)),
    "bilinear": lambda: nn.Sequential(nn.Linear(3, 3), Doubled()),
    "PReLU": lambda: nn.Sequential(nn.Linear(3, 3), nn.PReLU()),
    "LayerNorm over two": lambda: nn.Sequential(nn.Linear(3, 3), nn.LayerNorm((4, 3)), nn.Linear(3, 2)),
    "LayerNorm of another eps": lambda: nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3, eps=0.1), nn.Linear(3, 2)),
    "RMSNorm": lambda: nn.Sequential(nn.Linear(3, 3), nn.RMSNorm(3), nn.Linear(3, 2)),
    "RMSNorm over two": lambda: nn.Sequential(nn.Linear(3, 3), nn.RMSNorm((4, 3), eps=1e-3)),
    "attention": lambda: SelfAttention(),
    "transformer layer": lambda: nn.TransformerEncoderLayer(3, 1, 5, dropout=0.0, batch_first=True),
}


class Scaled(nn.Embedding):
    """An embedding that computes something else than its base class."""

    def forward(self, ids):
        return 3 * super().forward(ids)


class Turned(nn.LayerNorm):
    """Normalises over another dimension than its base class."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Looked(nn.Module):
    """An embedding of its own making."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, ids):
        return nn.functional.embedding(ids, self.weight, padding_idx=0)


def test_subclasses_that_compute_something_else_are_no_instances_of_their_base():
    torch.manual_seed(0)
    model = nn.Sequential(Scaled(5, 3), Turned(4), nn.Linear(3, 2)).double()
    batch = {"ids": torch.randint(0, 5, (6, 4))}
    compare(model, lambda b: model(b["ids"]).sin().sum((1, 2)), batch, data=3, draws=2)


def test_a_parameter_that_modules_with_and_without_rules_share():
    torch.manual_seed(0)
    decoder = nn.Linear(3, 5)
    model = nn.Sequential(Looked(decoder.weight), nn.Tanh(), Looked(nn.Parameter(torch.randn(5, 3))), decoder)
    model.double()
    assert model[0].weight is decoder.weight

    def losses(b):
        return (model[3](model[1](model[0](b["ids"])) + model[2](b["ids"]))).sin().sum((1, 2))

    compare(model, losses, {"ids": torch.randint(0, 5, (6, 4))}, data=3, draws=2)


class Outer(nn.Module):
    """Owns a parameter under two names, and shares it with a module inside it; neither has a rule."""

    def __init__(self):
        super().__init__()
        self.inner = Hard()
        self.scale = self.again = self.inner.scale

    def forward(self, x):
        return self.inner(x) * self.scale + x.cos() * self.again


def test_a_bare_parameter_with_several_names_and_owners():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), Outer()).double()
    batch = {"x": torch.randn(6, 4, 3, dtype=torch.float64)}
    compare(model, lambda b: model(b["x"]).sin().sum((1, 2)), batch, data=3, draws=2)


IN_PLACE = {
    "Linear, a view of its product": (lambda: nn.Linear(3, 3), (4, 3)),
    "Linear without bias": (lambda: nn.Linear(3, 3, bias=False), (4, 3)),
    "LayerNorm": (lambda: nn.LayerNorm(3), (4, 3)),
    "Conv1d": (lambda: nn.Conv1d(4, 4, 1), (4, 3)),
    "of another kind, a view": (lambda: Viewed(), (4, 3)),
}


class Viewed(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return (x * self.scale).view(len(x), 2, -1).view(len(x), 4, -1)


@pytest.mark.parametrize("kind", IN_PLACE)
def test_outputs_changed_in_place(kind):
    make, shape = IN_PLACE[kind]
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 3), make()]).double()

    def losses(b):
        y = model[1](model[0](b["x"]).tanh())
        y *= 2
        y += b["x"]
        return torch.relu_(y).sin().flatten(1).sum(1)

    compare(model, losses, {"x": torch.randn(6, *shape, dtype=torch.float64)}, data=3, draws=2)


def test_embeddings_and_broadcast_outputs_changed_in_place():
    torch.manual_seed(0)
    model = nn.ModuleDict({"words": nn.Embedding(5, 3), "places": nn.Embedding(4, 3), "norm": nn.LayerNorm(3)}).double()

    def losses(b):
        x = model["words"](b["ids"])
        x[:, :1] *= 2
        at = model["norm"](model["places"](torch.arange(4).unsqueeze(0)))
        at *= 3
        x += at
        return x.sin().sum((1, 2))

    compare(model, losses, {"ids": torch.randint(0, 5, (6, 4))}, data=3, draws=2)


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bilinear = nn.Bilinear(3, 3, 2)

    def forward(self, x):
        return self.bilinear(x, x.cos())


class SelfAttention(nn.Module):
    """Computes with its child's parameters itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(3, 1, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x.sin())[0]


@pytest.mark.parametrize("kind", OTHERS)
def test_modules_of_other_kinds(kind):
    torch.manual_seed(0)
    model = OTHERS[kind]().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)

    def losses(b):
        y = model(b["x"])
        return (y[0] if isinstance(y, tuple) else y).sin().sum((1, 2))

    compare(model, losses, {"x": torch.randn(6, 4, 3, dtype=torch.float64)}, data=3, draws=2)


CONVOLUTIONS = st.fixed_dictionaries(
    {
        "kernel_size": st.integers(1, 3),
        "stride": st.integers(1, 2),
        "padding": st.sampled_from([0, 1, "valid"]),
        "dilation": st.integers(1, 2),
        "groups": st.sampled_from([1, 2]),
        "bias": st.booleans(),
        "padding_mode": st.sampled_from(["zeros", "circular", "reflect", "replicate"]),
    }
)


@settings(max_examples=60, deadline=None)
@given(options=CONVOLUTIONS, dimensions=st.sampled_from([1, 2]), same=st.booleans(), data=SMALL, draws=SMALL)
def test_convolutions(options, dimensions, same, data, draws):
    torch.manual_seed(data + 10 * draws)
    if same:
        options |= {"padding": "same", "stride": 1}
    model = (nn.Conv1d if dimensions == 1 else nn.Conv2d)(2, 4, **options).double()
    batch = {"x": torch.randn(data * draws, 2, *(6, 7)[:dimensions], dtype=torch.float64)}
    compare(model, lambda b: model(b["x"]).sin().flatten(1).sum(1), batch, data, draws)


@pytest.mark.parametrize("segments", [1, 2])
def test_gradient_checkpointing(segments):
    """The module runs again in the backward pass; its calls then are no calls more."""
    torch.manual_seed(0)
    body = nn.ModuleList([nn.Linear(3, 3), nn.LayerNorm(3), Called(True)]).double()

    def part(x):
        return body[1](body[2](body[0](x).tanh(), factor=x)["y"])

    def losses(b):
        x = body[0](b["x"])
        for _ in range(segments):
            x = torch.utils.checkpoint.checkpoint(part, x, use_reentrant=False)
        return body[0](x).sin().sum((1, 2))

    compare(body, losses, {"x": torch.randn(6, 4, 3, dtype=torch.float64)}, data=3, draws=2)


def test_output_without_cells_in_front_is_refused():
    model = nn.Linear(2, 2).double()
    targets = select(model)
    accumulators = {id(t.parameter): MomentAccumulator(*t.shape, (2, 2), torch.float64) for t in targets}
    with pytest.raises(GradvarError, match="4 cells in front"):
        OnePass(model, targets).accumulate(
            lambda b: model(b["x"].view(8, 2)).view(4, -1).sum(1), {"x": torch.ones(4, 2, 2).double()}, accumulators, 0
        )


@pytest.mark.parametrize(
    "module",
    [
        nn.Embedding(4, 2, max_norm=1.0),
        nn.Embedding(4, 2, scale_grad_by_freq=True),
    ],
)
def test_options_without_a_rule_are_refused_by_name(module):
    reason = r"^Embedding with max_norm or scale_grad_by_freq has no per-sample gradient: it mixes cells$"
    with pytest.raises(GradvarError, match=reason):
        OnePass(module, select(module))


RULED = {
    "Linear": (lambda: nn.Linear(3, 4), (5, 3)),
    "LayerNorm": (lambda: nn.LayerNorm((5, 3)), (5, 3)),
    "RMSNorm": (lambda: nn.RMSNorm((5, 3)), (5, 3)),
    "Conv1d": (lambda: nn.Conv1d(5, 4, 2), (5, 3)),
    "Conv2d": (lambda: nn.Conv2d(2, 4, 2), (2, 5, 3)),
    "Embedding": (lambda: nn.Embedding(8, 3, padding_idx=2), None),
}


@pytest.mark.parametrize("kind", RULED)
def test_modules_with_rules_have_one_for_every_parameter(kind):
    """Without its rule a parameter's gradient is found all the same, slowly, by running the module again."""
    module = RULED[kind][0]()
    assert list(rules_of(module)) == [name for name, _ in module.named_parameters()]


def check_filled(rule, module, name, x, parts=(slice(0, 6), slice(2, 5))):
    """Check what a rule fills in, and adds, for parts of the cells and of the rows."""
    y = module(x)
    dy = torch.randn_like(y)
    parameter = module.get_parameter(name)
    whole = torch.stack([torch.autograd.grad(module(x[c : c + 1]), parameter, dy[c : c + 1])[0] for c in range(6)])
    whole = whole.view(6, parameter.shape[0] if parameter.ndim > 1 else 1, -1)
    fill = rule(Call(module, x, (x,), {}, [dy]))
    for cells in parts:
        occurring = whole[cells].any(2).any(0).nonzero().flatten()  # more than these need not come by index
        for rows in (slice(0, whole.shape[1]), slice(whole.shape[1] // 2, whole.shape[1]), slice(0, 1), occurring):
            expected = whole[cells][:, rows]
            before = torch.randn_like(expected)
            out = before.clone()
            fill(cells, rows, out, False)
            torch.testing.assert_close(out, before + expected, rtol=1e-12, atol=1e-12)
            fill(cells, rows, out, True)
            torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", RULED)
def test_rules_fill_any_cells_and_rows(kind):
    torch.manual_seed(0)
    make, shape = RULED[kind]
    module = make().double()
    x = torch.randint(0, 8, (6, 4)) if shape is None else torch.randn(6, *shape, dtype=torch.float64)
    for name, rule in rules_of(module).items():
        check_filled(rule, module, name, x)


@pytest.mark.parametrize("make", [Hard, lambda: nn.PReLU(4)])
def test_modules_of_other_kinds_fill_any_cells_and_rows(make):
    torch.manual_seed(0)
    module = make().double()
    ((name, _),) = module.named_parameters()
    check_filled(vjp_rule(name), module, name, torch.randn(6, 4, 3, dtype=torch.float64))


class Warned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        warnings.warn("the module's own", stacklevel=1)
        return x * self.scale


def test_vmaps_word_of_performance_is_kept_from_the_user():
    """A bilinear layer has no batching rule."""
    module, x = nn.Bilinear(3, 3, 2, bias=False), torch.randn(4, 3)
    fill = vjp_rule("weight")(Call(module, x, (x, x), {}, [torch.ones(4, 2)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill(slice(0, 4), slice(0, 2), out := torch.empty(4, 2, 9), True)
    torch.testing.assert_close(out, torch.einsum("ci,cj->cij", x, x).view(4, 1, 9).expand(4, 2, 9))


def test_a_modules_own_warnings_reach_the_user():
    module = Warned()
    dy = torch.ones(4, 3)
    with pytest.warns(UserWarning, match="the module's own"):
        vjp_rule("scale")(Call(module, dy, (dy,), {}, [dy]))(slice(0, 4), slice(0, 1), torch.empty(4, 1, 3), True)
