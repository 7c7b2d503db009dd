"""The joint model: what it draws, what its loss is, and which gradients reach what."""

import json
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradvar.comparing import FIELD, FITTED
from gradvar.errors import GradvarError
from gradvar.mapnet.losses import LOSSES
from gradvar.mapnet.online import candidates
from gradvar.masking.designs import mix
from gradvar.masking.units import near_inclusion
from gradvar.training.cross_entropy import cross_entropy
from gradvar.training.joint import JointModel, evaluating
from gradvar.training.recipe import MapNetTraining, Masking, masks_of
from tests import cases

LENGTHS = (12, 9, 7, 12, 10, 5, 11, 8)
TEXT = cases.corpus(list(LENGTHS)).sequences
ROWS = tuple(range(len(LENGTHS)))
RATE = 0.3
SHAPE = {"width": 8, "window": 2, "heads": 2}
MAPNETS = ("mapnet^0.5/pps~0.1", "mapnet/midzuno", "mapnet/hard~0.3")
DRAWN = (
    "uniform/simple",
    "logit/pps~0.1",
    "frequency/hard",
    "logit/pool:3",
    "mapnet^0.5/midzuno~0.1",
    "mapnet-permuted^0.5/conditional-poisson~0.2",
    "uniform/disjoint:2",
    "uniform/epoch-stratified",
)


@pytest.fixture(autouse=True)
def _mapnets_in_float64(monkeypatch):
    """Their log scores are float32, so that nothing about them could be told to ten digits."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


def joint(
    proposal: str = "uniform/simple", *, seed: int = 0, dropout: float = 0.0, mapnet: dict | None = None, **masking
) -> JointModel:
    """A joint model whose MAPNet, if there is one, has random weights and a scale of its targets."""
    made = JointModel(
        cases.model("bert", rate=dropout),
        cases.tokenizer(),
        Masking(proposal=proposal, **({"mask_rate": RATE} | masking)),
        MapNetTraining(**({"shape": SHAPE} | (mapnet or {}))),
        seed=seed,
        max_length=max(LENGTHS),
        token_counts=torch.arange(60, dtype=torch.float64),
    ).train()
    made.mean_targets = 2.0
    if made.mapnet is not None:
        made.mapnet.double()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in made.mapnet.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        made.restore(made.state() | {"scale": [0.5, 1.0]})
    return made


def inputs(rows: Sequence[int] = ROWS, step: int = 0, epoch: int = 0, padding: int = 0) -> dict[str, Tensor]:
    """Some sentences, with as much more padding as is asked for."""
    ids = torch.full((len(rows), max(LENGTHS[row] for row in rows) + padding), -1)
    for place, row in enumerate(rows):
        ids[place, : LENGTHS[row]] = torch.from_numpy(TEXT[row].astype(np.int64))
    number = torch.tensor(rows)
    return {"ids": ids, "row": number, "epoch": torch.full_like(number, epoch), "step": torch.full_like(number, step)}


def backward(model: JointModel, **batch: Tensor) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradients of a step."""
    model.zero_grad()
    loss = model(**batch)["loss"]
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def part_of(gradients: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: gradient for key, gradient in gradients.items() if key.startswith(f"{name}.")}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def tallies(model: JointModel, **batch: Tensor) -> dict[str, Tensor]:
    """What a step alone tallies."""
    model.tallies = {}
    model(**batch)
    return model.tallies


def drawn(model: JointModel, rows: Sequence[int] = ROWS, **where: int) -> dict[int, list]:
    """By row its cells: corrupted ids without padding, targets, weights, key."""
    batch = inputs(rows, **where)
    sentences = model.sentences(**batch)
    masks, _ = model.draw(sentences, batch["row"], batch["epoch"])
    ids = model.masked.corrupted(sentences, masks)["input_ids"]
    found: dict[int, list] = {row: [] for row in rows}
    for cell in range(len(ids)):
        row, valid = rows[cell // model.masks], masks.valid[cell]
        key = int(masks.keys[cell])
        found[row].append(
            (ids[cell, : LENGTHS[row]].tolist(), masks.positions[cell, valid].tolist(), masks.weights[cell, valid], key)
        )
    return found


# ---- draws


@pytest.mark.parametrize("proposal", DRAWN)
def test_draws_do_not_depend_on_other_rows_their_order_or_padding(proposal):
    model = joint(proposal)
    whole = drawn(model, step=5, epoch=2)
    for rows, padding in (([3], 0), ([5, 1], 4), (ROWS[::-1], 1)):
        for row, cells in drawn(model, rows, step=5, epoch=2, padding=padding).items():
            for (*found, weights, key), (*expected, expected_weights, expected_key) in zip(
                cells, whole[row], strict=True
            ):
                assert (found, key) == (expected, expected_key)
                torch.testing.assert_close(weights, expected_weights, rtol=1e-9, atol=0)


def sets_of(found: dict[int, list]) -> list[list[int]]:
    return [cell[1] for cells in found.values() for cell in cells]


def keys_of(found: dict[int, list]) -> set[int]:
    return {cell[3] for cells in found.values() for cell in cells}


@pytest.mark.parametrize("proposal", [p for p in DRAWN if p != "uniform/epoch-stratified"])
def test_draws_differ_from_step_to_step_epoch_to_epoch_and_seed_to_seed(proposal):
    """Of eight sentences some set differs, and every key: by chance neither would for one seed in a million."""
    model = joint(proposal)
    one = drawn(model)
    assert sets_of(drawn(model)) == sets_of(one)
    for other in (drawn(model, step=1), drawn(model, epoch=1), drawn(joint(proposal, seed=1))):
        assert sets_of(other) != sets_of(one)
        assert not keys_of(other) & keys_of(one)


def test_the_same_sentence_in_another_row_is_masked_otherwise():
    model, batch = joint(), inputs([0] * 8)
    sentences = model.sentences(**(batch | {"row": torch.arange(8)}))
    masks, _ = model.draw(sentences, torch.arange(8), batch["epoch"])
    assert len(set(map(tuple, masks.positions.tolist()))) > 1  # else 8 of 120 sets agree: one seed in 10^14
    assert len(set(masks.keys.tolist())) == 8


def test_stratified_draws_depend_on_seed_row_and_visit_alone():
    model = joint("uniform/epoch-stratified")
    visits = [drawn(model, epoch=epoch) for epoch in range(4)]
    for epoch, one in enumerate(visits):
        later = drawn(model, step=9, epoch=epoch)
        assert (sets_of(later), keys_of(later)) == (sets_of(one), keys_of(one))
    for row in (0, 3):  # T = 10, k = 3: three disjoint masks, and a fourth for what is left
        sets = [set(visit[row][0][1]) for visit in visits]
        assert len(set().union(*sets[:3])) == 9
        assert set().union(*sets) == set(range(1, 11))
    assert sets_of(drawn(joint("uniform/epoch-stratified", seed=1))) != sets_of(visits[0])
    assert visits[0][0][0][1] != visits[0][3][0][1]  # rows 0 and 3 are as long; one seed in 120 would not tell them


def test_several_stratified_masks_of_a_step_are_successive_visits():
    one, three = (joint("uniform/epoch-stratified", masks=masks) for masks in (1, 3))
    for epoch in range(3):
        together = drawn(three, epoch=epoch)
        for draw in range(3):
            alone = drawn(one, epoch=3 * epoch + draw)
            assert all(together[row][draw][1::2] == alone[row][0][1::2] for row in ROWS)  # targets and key


@pytest.mark.parametrize("design", ["pps", "midzuno"])
def test_a_calibrated_proposal_draws_by_its_exponent_and_epsilon(design):
    """And by uniform masks before; the hashes are the same."""

    def alike(one: dict[int, list], other: dict[int, list]) -> bool:
        pairs = [(a, b) for row in ROWS for a, b in zip(one[row], other[row], strict=True)]
        return all(a[:2] == b[:2] and torch.allclose(a[2], b[2], rtol=1e-9, atol=0) for a, b in pairs)

    model = joint(f"mapnet/{design}")
    assert alike(drawn(model), drawn(joint("uniform/simple")))
    moments = np.full(1 + len(candidates()), 2.0)
    moments[0], moments[1 + candidates().index((0.5, 0.1))] = 1.0, 0.5
    for _ in range(20):
        model.learn({"moments": torch.from_numpy(moments), "looks": torch.tensor(1.0)})
    assert alike(drawn(model), drawn(joint(f"mapnet^0.5/{design}~0.1")))
    assert not alike(drawn(model), drawn(joint("uniform/simple")))


# ---- the loss


def plain_loss(model: JointModel, batch: dict[str, Tensor]) -> Tensor:
    """The mean over cells of their weighted losses: from whole logits, cell by cell."""
    sentences = model.sentences(**batch)
    masks, _ = model.draw(sentences, batch["row"], batch["epoch"])
    corrupted = model.masked.corrupted(sentences, masks)
    losses = []
    for cell in range(len(masks.keys)):
        row = cell // model.masks
        length, valid = int(sentences.attended[row].sum()), masks.valid[cell]
        logits = model.encoder(input_ids=corrupted["input_ids"][cell, :length].unsqueeze(0)).logits[0]
        at = masks.positions[cell, valid]
        nll = F.cross_entropy(logits[at], sentences.ids[row, at], reduction="none")
        weights = masks.weights[cell, valid]
        if model.masking.weighting == "token":
            weights = weights * int(valid.sum()) / 2.0
        losses.append((weights * nll).sum())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("weighting", ["sentence", "token"])
@pytest.mark.parametrize("proposal", DRAWN)
def test_the_loss_is_the_mean_over_cells_of_weighted_losses(proposal, weighting):
    model, batch = joint(proposal, weighting=weighting), inputs()
    value, found = backward(model, **batch)
    plain = plain_loss(model, batch)
    assert value == pytest.approx(plain.item(), rel=1e-12)
    model.zero_grad()
    plain.backward()
    for name, parameter in model.encoder.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[f"encoder.{name}"], parameter.grad, rtol=1e-9, atol=1e-12)


def test_token_weights_are_by_targets():
    """Uniform masks: `k/mean k` times the mean over a cell's targets, with the mean that the model was told, 2."""
    model = joint(weighting="token")
    value, _ = backward(model, **inputs())
    alone = [backward(joint(), **inputs([row]))[0] for row in ROWS]
    counts = [max(1, int(RATE * (n - 2) + 0.5)) for n in LENGTHS]
    assert value == pytest.approx(np.mean([k / 2.0 * x for k, x in zip(counts, alone, strict=True)]), rel=1e-12)


@pytest.mark.parametrize("proposal", ["uniform/simple", "logit/pps~0.1", "mapnet^0.5/midzuno", "uniform/disjoint:2"])
def test_several_masks_of_a_sentence(proposal):
    """Four cells a sentence, with different masks in them, and the mean over all."""
    model, batch = joint(proposal, masks=4), inputs()
    found = drawn(model)
    assert {len(cells) for cells in found.values()} == {4}
    assert len({tuple(cell[1]) for cell in found[0]}) > 1  # 4 of 120 sets: alike for one seed in a million
    assert len(keys_of(found)) == 4 * len(ROWS)
    assert tallies(model, **batch)["cells"] == 4 * len(ROWS)
    assert backward(model, **batch)[0] == pytest.approx(plain_loss(model, batch).item(), rel=1e-12)


def whole_and_parts(model: JointModel) -> tuple[list, list]:
    """`(loss, gradients, tallies)` of all rows at once, and of four micro-batches of different lengths."""

    def of(rows: Sequence[int]) -> tuple:
        model.tallies = {}
        return *backward(model, **inputs(rows)), model.tallies

    return [of(ROWS)], [of(ROWS[i : i + 2]) for i in range(0, len(ROWS), 2)]


@pytest.mark.parametrize(
    ("proposal", "loss", "target"),
    cases.mostly_full(
        product([*MAPNETS, "mapnet/pool:2", "mapnet-permuted/pps"], LOSSES, ["logit", "gradient"]),
        lambda proposal, loss, target: loss == "kl" or proposal == MAPNETS[0],
    ),
)
def test_micro_batches_add_up(proposal, loss, target):
    """Mean loss and mean gradients, encoder's and MAPNet's, to 1e-10; sums of all that is tallied."""
    (whole,), parts = whole_and_parts(joint(proposal, masks=2, mapnet={"loss": loss, "target": target}))
    assert np.mean([part[0] for part in parts]) == pytest.approx(whole[0], rel=1e-10)
    for name, gradient in whole[1].items():
        mean = torch.stack([part[1][name] for part in parts]).mean(dim=0)
        torch.testing.assert_close(mean, gradient, rtol=0, atol=1e-10 * float(gradient.abs().max()) + 1e-14, msg=name)
    assert all(float(g.abs().sum()) > 0 for name, g in whole[1].items() if name.startswith("mapnet.head"))
    for name, tally in whole[2].items():
        together = torch.stack([part[2][name] for part in parts]).sum(dim=0)
        torch.testing.assert_close(together, tally, rtol=1e-10, atol=0, msg=name)


@pytest.mark.parametrize(
    "proposal",
    [*FIELD, *FITTED, "uniform/simple", "uniform/disjoint:2", "uniform/epoch-stratified", "mapnet/hard", "mapnet/pps"],
)
def test_every_proposal_runs(proposal):
    """Two steps, with the scale of the MAPNet's targets learnt in the first one."""
    model = joint(proposal)
    for step in range(2):
        value, gradients = backward(model, **inputs(step=step))
        assert np.isfinite(value)
        assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
        model.learn(model.tallies)
        model.tallies = {}
    assert gradients.keys() == dict(model.named_parameters()).keys()


# ---- the MAPNet


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("proposal", [*MAPNETS, "mapnet-permuted/pps~0.1"])
def test_the_mapnets_loss_stays_out_of_the_encoder_and_of_the_value(proposal, loss):
    """Bit for bit: without a MAPNet's loss, as in a first step that knows no scale, with it, and 100 times as large."""
    model, large = (joint(proposal, mapnet={"loss": loss, "weight": weight}) for weight in (1.0, 100.0))
    value, gradients = backward(model, **inputs())
    more, gradients_of_more = backward(large, **inputs())
    model.restore(model.state() | {"scale": [0.0, 0.0]})
    alone, gradients_alone = backward(model, **inputs())
    assert value == more == alone
    assert same(part_of(gradients, "encoder"), part_of(gradients_alone, "encoder"))
    assert same(part_of(gradients, "encoder"), part_of(gradients_of_more, "encoder"))
    for name, gradient in part_of(gradients, "mapnet").items():
        torch.testing.assert_close(gradients_of_more[name], 100 * gradient, rtol=1e-9, atol=1e-14)
        assert (gradients_alone[name] == 0).all()
    assert all(float(gradient.abs().max()) > 0 for name, gradient in gradients.items() if "mapnet.entry." in name)


def test_its_gradient_reaches_the_embeddings_where_that_is_asked_for():
    """And nothing else; 100 times as far with 100 times the weight."""
    found = {}
    for weight, into in ((1.0, False), (1.0, True), (100.0, True)):
        model = joint(MAPNETS[0], mapnet={"weight": weight, "into_encoder": into})
        found[weight, into] = part_of(backward(model, **inputs())[1], "encoder")
    (table,) = [name for name in found[1.0, True] if not torch.equal(found[1.0, True][name], found[1.0, False][name])]
    assert table.endswith("word_embeddings.weight")
    once, often = (found[weight, True][table] - found[1.0, False][table] for weight in (1.0, 100.0))
    torch.testing.assert_close(often, 100 * once, rtol=1e-9, atol=1e-9 * float(often.abs().max()))


def observations(model: JointModel, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """`(log scores, |p - y|, observed, maskable, 1/(T pi))` on positions, by autograd, for one mask a sentence."""
    sentences = model.sentences(**batch)
    masks, scores = model.draw(sentences, batch["row"], batch["epoch"])
    said = model.mapnet(model.encoder.get_input_embeddings()(sentences.ids.clamp(min=0)), sentences.attended)
    logits = model.masked.logits(model.masked.corrupted(sentences, masks)).detach().requires_grad_()
    at = sentences.ids.gather(1, masks.positions)
    nll = F.cross_entropy(logits.flatten(0, 1), at.flatten(), reduction="sum")
    norms = torch.autograd.grad(nll, logits)[0].norm(dim=-1)
    weights = masks.weights
    design = model.in_use[1].design
    if design.unbiased == "no model":
        pi = mix(near_inclusion(sentences, scores), sentences, design.epsilon)
        weights = masks.valid / (sentences.totals.unsqueeze(1) * pi.gather(1, masks.positions))
    placed = [torch.zeros(sentences.ids.shape, dtype=torch.float64) for _ in range(3)]
    for row, valid in enumerate(masks.valid):
        for part, values in zip(placed, (norms, weights, masks.valid.double()), strict=True):
            part[row, masks.positions[row, valid]] = values[row, valid].double()
    return said, placed[0], placed[2] > 0, sentences.maskable, placed[1]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("proposal", [*MAPNETS, "mapnet/hard", "mapnet/pps", "mapnet-permuted^1/pps~0.1"])
def test_its_loss_is_of_the_logit_norms_at_the_targets_drawn(proposal, loss):
    """Weighted by the inverse of the chance of being drawn, which a mixture with uniform masks changes."""
    model, batch = joint(proposal, mapnet={"loss": loss}), inputs()
    found = tallies(model, **batch)
    log_scores, norms, observed, maskable, weights = observations(model, batch)
    assert found["norm2"].item() == pytest.approx(float((weights * norms.square()).sum()), rel=1e-9)
    value = LOSSES[loss](log_scores, norms / 0.5**0.5, observed, maskable, weights)
    value = value.exp() if loss == "variance" else value
    assert found["mapnet_loss"].item() / len(ROWS) == pytest.approx(value.item(), rel=1e-9)
    _, gradients = backward(model, **batch)
    names = [f"mapnet.{name}" for name, _ in model.mapnet.named_parameters()]
    for name, own in zip(names, torch.autograd.grad(value, list(model.mapnet.parameters())), strict=True):
        torch.testing.assert_close(gradients[name], own, rtol=1e-8, atol=1e-12)


def gradient_norms2(model: JointModel, batch: dict[str, Tensor]) -> Tensor:
    """`[cells, targets]` squared norms of the gradients of the targets' losses, by autograd, dropout off."""
    sentences = model.sentences(**batch)
    masks, _ = model.draw(sentences, batch["row"], batch["epoch"])
    parameters = list(model.encoder.parameters())
    with evaluating(model.encoder):
        logits = model.masked.logits(model.masked.corrupted(sentences, masks))
    found = torch.zeros(masks.positions.shape, dtype=torch.float64)
    for cell, slot in masks.valid.nonzero().tolist():
        nll = F.cross_entropy(logits[cell, slot], sentences.ids[cell, masks.positions[cell, slot]])
        parts = torch.autograd.grad(nll, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        found[cell, slot] = sum(part.square().sum() for part in parts)
    return (found * masks.weights).sum()


def test_true_norms_are_measured_without_dropout_and_leave_no_trace():
    """Same random numbers afterwards, same loss and gradients of the encoder, same modes, as with logit norms."""
    batch, seen = inputs(), []
    for target in ("logit", "gradient"):
        model = joint(MAPNETS[0], dropout=0.2, mapnet={"target": target})
        model.encoder.base_model.encoder.eval()  # a user's own choice, which must last
        modes = [part.training for part in model.modules()]
        torch.manual_seed(5)
        value, gradients = backward(model, **batch)
        assert [part.training for part in model.modules()] == modes
        seen.append((value, part_of(gradients, "encoder"), torch.get_rng_state(), model))
    (value, gradients, numbers, _), (other, other_gradients, other_numbers, model) = seen
    assert value == other
    assert same(gradients, other_gradients)
    assert torch.equal(numbers, other_numbers)
    assert model.tallies["norm2"].item() == pytest.approx(float(gradient_norms2(model, batch)), rel=1e-9)
    assert {p.requires_grad for p in model.parameters()} == {True}


@pytest.mark.parametrize("proposal", ["logit/pps", "oracle/midzuno", "oracle/pool:2", "frequency/pps", MAPNETS[0]])
def test_scoring_takes_no_random_numbers(proposal):
    """Dropout is off in it: as many numbers are drawn as by uniform masks, and scores are the same every time."""
    states = []
    for text in ("uniform/simple", proposal):
        model = joint(text, dropout=0.2)
        torch.manual_seed(5)
        backward(model, **inputs())
        states.append(torch.get_rng_state())
        assert all(part.training for part in model.modules())
    assert torch.equal(*states)
    one, other = (model.draw(model.sentences(**inputs()), inputs()["row"], inputs()["epoch"])[1] for _ in range(2))
    assert torch.equal(one, other)


def test_true_norms_are_measured_every_so_many_steps():
    """Between them the MAPNet has gradients of zero, which make no other difference."""
    model = joint(MAPNETS[0], mapnet={"target": "gradient", "every": 3})
    for step in range(5):
        model.tallies = {}
        _, gradients = backward(model, **inputs(step=step))
        looked = step % 3 == 0
        assert {"norm2", "mapnet_loss"} <= model.tallies.keys() if looked else "norm2" not in model.tallies
        assert all(bool((g == 0).all()) != looked for n, g in gradients.items() if n == "mapnet.entry.weight")
        assert part_of(gradients, "mapnet").keys() == {f"mapnet.{n}" for n, _ in model.mapnet.named_parameters()}


def test_the_calibration_looks_every_so_many_steps():
    model = joint("mapnet/pps", mapnet={"calibrate_every": 4})
    looks = ["moments" in tallies(model, **inputs(step=step)) for step in range(9)]
    assert looks == [step % 4 == 0 for step in range(9)]
    assert not any(
        "moments" in tallies(joint(proposal), **inputs()) for proposal in MAPNETS if "midzuno" not in proposal
    )


def test_the_scale_is_the_discounted_mean_square_of_the_targets():
    model = joint(MAPNETS[0])
    model.restore({"scale": [0.0, 0.0]})
    sums = np.zeros(2)
    for step in range(3):
        found = tallies(model, **inputs(step=step))
        model.learn(found)
        sums = 0.99 * sums + [float(found["norm2"]), len(ROWS)]
        np.testing.assert_allclose(model.state()["scale"], sums, rtol=1e-12)


@pytest.mark.parametrize("proposal", ["mapnet/pps", MAPNETS[0], "uniform/simple"])
def test_its_state_goes_through_json(proposal):
    """A model that is told the state says and does the same from then on."""
    model, other = joint(proposal), joint(proposal)
    for step in range(20):
        model.learn(tallies(model, **inputs(step=step)))
    other.restore(json.loads(json.dumps(model.state(), allow_nan=False)))
    assert other.state() == model.state()
    for step in range(20, 23):
        assert model.in_use[0] == other.in_use[0]
        found, expected = (backward(m, **inputs(step=step)) for m in (other, model))
        assert found[0] == expected[0]
        assert same(found[1], expected[1])
        for each in (other, model):
            each.learn(tallies(each, **inputs(step=step)))


# ---- tallies


@pytest.mark.parametrize("masks", [1, 2])
def test_what_is_tallied_of_uniform_masks(masks):
    """The effective sample size is one, exactly, whatever the lengths."""
    model = joint(masks=masks)
    found = {name: float(value) for name, value in tallies(model, **inputs()).items()}
    counts = [max(1, int(RATE * (n - 2) + 0.5)) for n in LENGTHS]
    assert len(set(counts)) > 1
    assert found["cells"] == masks * len(ROWS)
    assert found["targets"] == masks * sum(counts)
    assert found["tokens"] == masks * sum(LENGTHS)
    assert found["weight"] ** 2 / (found["targets"] * found["weight2"]) == 1
    assert found["loss"] == pytest.approx(masks * len(ROWS) * backward(model, **inputs())[0], rel=1e-12)


@pytest.mark.parametrize("masks", [1, 2])
def test_token_weighting_is_no_part_of_the_effective_sample_size(masks):
    found = tallies(joint(weighting="token", masks=masks), **inputs())
    assert found["weight"] ** 2 / (found["targets"] * found["weight2"]) == 1


def test_the_effective_sample_size_is_of_targets():
    """Of `k w_i` over all targets: weights relative to uniform masks'."""
    model = joint("logit/pps")
    found = tallies(model, **inputs())
    weights = torch.cat([len(cell[1]) * cell[2] for cells in drawn(model).values() for cell in cells])
    ess = found["weight"] ** 2 / (found["targets"] * found["weight2"])
    assert ess.item() == pytest.approx(float(weights.sum() ** 2 / (len(weights) * weights.square().sum())), rel=1e-12)
    assert ess < 1 - 1e-6


# ---- cross-entropy


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = 3 * torch.randn(4, 3, 7, dtype=torch.float64, generator=generator)
    return values.requires_grad_(), torch.randint(7, (4, 3), generator=generator)


def test_cross_entropy_and_the_norms_of_its_gradients(logits):
    values, targets = logits
    nll, norms = cross_entropy(values, targets)
    plain = F.cross_entropy(values.flatten(0, 1), targets.flatten(), reduction="none").view(4, 3)
    torch.testing.assert_close(nll, plain, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(plain.sum(), values)
    torch.testing.assert_close(norms, gradient.norm(dim=-1), rtol=1e-9, atol=0)
    assert not norms.requires_grad


def test_cross_entropys_gradient(logits):
    values, targets = logits
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets)[0], (values,))
    upstream = torch.rand(4, 3, dtype=torch.float64)
    found, plain = (
        torch.autograd.grad((nll.view(4, 3) * upstream).sum(), values)[0]
        for nll in (
            cross_entropy(values, targets)[0],
            F.cross_entropy(values.flatten(0, 1), targets.flatten(), reduction="none"),
        )
    )
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-15)


def test_cross_entropy_leaves_the_logits_alone(logits):
    values, targets = logits
    before = values.detach().clone()
    cross_entropy(values, targets)[0].sum().backward()
    assert torch.equal(values.detach(), before)


@pytest.mark.parametrize("size", [40.0, 400.0])
def test_cross_entropy_of_certain_predictions(size):
    """Right ones have norms of zero, wrong ones of sqrt(2); nothing is not a number."""
    values = torch.zeros(1, 2, 5, dtype=torch.float64)
    values[:, :, 3] = size
    values.requires_grad_()
    nll, norms = cross_entropy(values, torch.tensor([[3, 1]]))
    torch.testing.assert_close(nll, torch.tensor([[0.0, size]], dtype=torch.float64), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norms, torch.tensor([[0.0, 2**0.5]], dtype=torch.float64), rtol=1e-7, atol=1e-7)
    nll.sum().backward()
    assert values.grad.isfinite().all()


def test_cross_entropy_of_half_precision_is_of_float32(monkeypatch):
    monkeypatch.undo()  # here `float` means float32
    values, targets = torch.randn(2, 3, 7, dtype=torch.bfloat16, requires_grad=True), torch.zeros(2, 3).long()
    nll, norms = cross_entropy(values, targets)
    assert nll.dtype == norms.dtype == torch.float32
    nll.sum().backward()
    assert values.grad.dtype == torch.bfloat16


# ---- the rest


def test_evaluating_restores_every_modules_own_mode():
    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout())).train()
    module[1].eval()
    module[1][1].train()
    modes = [part.training for part in module.modules()]
    with evaluating(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == modes
    with pytest.raises(KeyError), evaluating(module):
        raise KeyError
    assert [part.training for part in module.modules()] == modes


@pytest.mark.parametrize(
    ("masking", "count"),
    [
        ({}, 1),
        ({"masks": 3}, 3),
        ({"proposal": "uniform/disjoint:2"}, 2),
        ({"proposal": "uniform/disjoint:2", "masks": 6}, 6),
        ({"proposal": "mapnet/pps"}, 1),
    ],
)
def test_masks_of_a_step(masking, count):
    assert masks_of(Masking(**masking)) == count


def test_masks_that_are_no_multiple_of_a_draws():
    with pytest.raises(ValueError, match=r"masking.masks 3 is no multiple of the 2 masks of one draw of uniform/disj"):
        Masking(proposal="uniform/disjoint:2", masks=3)


def test_token_weighting_without_a_mean():
    model = JointModel(cases.model("bert"), cases.tokenizer(), Masking(weighting="token"))
    with pytest.raises(GradvarError, match="'token' takes the mean number of targets; set mean_targets"):
        model(**inputs())


def test_a_new_mapnet_scores_alike_is_a_function_of_the_seed_and_takes_no_random_numbers():
    encoder, models = cases.model("bert"), []
    before = torch.get_rng_state()
    for seed in (0, 0, 1):
        masking, options = Masking(proposal="mapnet/pps"), MapNetTraining(shape=SHAPE)
        models.append(JointModel(encoder, cases.tokenizer(), masking, options, seed=seed, max_length=12))
    assert torch.equal(torch.get_rng_state(), before)
    one, again, other = (model.mapnet.entry.weight for model in models)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    sentences = models[0].sentences(**inputs())
    _, scores = models[0].draw(sentences, inputs()["row"], inputs()["epoch"])
    assert torch.equal(scores, sentences.maskable.double())
