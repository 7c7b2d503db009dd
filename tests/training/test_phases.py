"""Phases: where they begin, what they show, and that ranks and workers change none of it."""

from collections import Counter
from itertools import chain, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvar.errors import GradvarError
from gradvar.training.order import Order, RankBatches
from gradvar.training.phases import phases_of
from gradvar.training.schedule import Schedule
from gradvar.training.sequences import Limits, Sequences
from tests import cases
from tests.training import runs

ALIKE = [{"input_ids": [cases.CLS, *range(5, 15), cases.SEP]} for _ in range(20)]
LENGTHS = Schedule("steps", (0.0, 0.5, 0.8), (4, 7, 12))


def sequences(rows=20, of=12):
    """Sequences of 12 tokens: 10 words in a frame."""
    data = [{"input_ids": [cases.CLS, *range(5, 3 + of), cases.SEP]} for _ in range(rows)]
    return Sequences(data, "train_dataset", Limits.of(cases.model("bert"), cases.tokenizer()))


def shown(data, phases, step):
    return data.__getitems__(phases.at(step))


def test_without_a_schedule_it_is_the_order_itself():
    phases = phases_of(sequences(), None, 3, 7, steps=50)
    order = Order(20, 3, 7)
    assert [phases.at(step) for step in (0, 5, 49, 200)] == [order.at(step) for step in (0, 5, 49, 200)]
    assert (phases.steps, phases.batch, phases.epochs(40)) == (50, 3, 6.0)


def test_where_phases_begin_and_what_they_show():
    data = sequences()
    phases = phases_of(data, LENGTHS, 2, 0, steps=20)
    assert phases.counts == (10, 6, 4)
    by_step = [[len(ids) for _, ids in shown(data, phases, step)] for step in range(20)]
    assert by_step[:10] == [[4] * 6] * 10  # 12 // 4 times the batch
    assert all(set(lengths) == {7} and len(lengths) == 2 for lengths in by_step[10:16])
    assert by_step[16:] == [[12] * 2] * 4
    assert [place.step for step in (0, 9, 10, 19) for place in phases.at(step)] == [0] * 6 + [9] * 6 + [10, 10, 19, 19]


def test_each_epoch_of_a_phase_shows_every_piece_once():
    data = sequences(rows=6)
    phases = phases_of(data, Schedule("steps", (0.0,), (4,)), 1, 0, steps=1000)
    places = list(islice(chain.from_iterable(map(phases.at, range(1000))), 3 * 30))
    for epoch in range(3):
        part = places[30 * epoch : 30 * (epoch + 1)]
        assert {place.epoch for place in part} == {epoch}
        assert Counter((p.row, p.start, p.stop) for p in part) == Counter(
            (row, start, start + 2) for row in range(6) for start in range(0, 10, 2)
        )
        assert len({place.number for place in part}) == 30
    assert phases.epochs(10) == 1.0


def test_phases_have_orders_of_their_own():
    """Of 20 sequences: that two agree by chance has a probability of 1/20!."""
    lengths = Schedule("steps", (0.0, 0.5), (12, 13))
    phases = phases_of(sequences(), lengths, 20, 0, steps=2)
    assert [p.row for p in phases.at(0)] != [p.row for p in phases.at(1)]


@pytest.mark.parametrize("lengths", [(4, 4), (7, 8)], ids=str)
def test_phases_of_as_many_pieces_have_orders_of_their_own(lengths):
    """Of 40 pieces or more: that two agree by chance has a probability of 1/40! at most."""
    first, second = phases_of(sequences(), Schedule("steps", (0.0, 0.5), lengths), 4, 0, steps=40).parts
    assert first.units.rows.tolist() == second.units.rows.tolist()
    assert first.order.batch == second.order.batch
    one, two = ([place.row for step in range(12) for place in x.order.at(step)] for x in (first, second))
    pieces = len(first.units.rows)
    assert sorted(one[:pieces]) == sorted(two[:pieces]) == list(range(pieces))
    assert one != two


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 2000),
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.integers(3, 14)), max_size=3, unique_by=lambda x: x[0]
    ),
    st.integers(1, 2),
)
def test_a_budget_in_tokens_is_met_phase_by_phase(tokens, points, masks):
    points = [(0.0, 5), *sorted(points)]
    data, schedule = sequences(rows=30), Schedule("steps", *zip(*points, strict=True))
    phases = phases_of(data, schedule, 2, 1, tokens=tokens, shown=masks)
    step = 0
    for count, end, start in zip(phases.counts, [*schedule.shares[1:], 1.0], schedule.shares, strict=True):
        wanted = max(1, round((end - start) * tokens))
        seen = [masks * sum(len(ids) for _, ids in shown(data, phases, s)) for s in range(step, step + count)]
        assert sum(seen) >= wanted > sum(seen[:-1])
        step += count
    assert phases.steps == step


def test_a_phase_that_gets_no_step_is_left_out():
    phases = phases_of(sequences(), Schedule("steps", (0.0, 0.01, 0.5), (4, 7, 12)), 2, 0, steps=4)
    assert phases.counts == (2, 2)
    assert [part.units is None for part in phases.parts] == [False, True]


@pytest.mark.parametrize(("accumulation", "world"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_ranks_share_out_every_phase(accumulation, world):
    phases = phases_of(sequences(), LENGTHS, 4, 0, steps=10)
    loaders = [iter(RankBatches(phases, accumulation, rank, world, lambda: 0)) for rank in range(world)]
    for step in range(12):
        parts = [next(loader) for _ in range(accumulation) for loader in loaders]
        assert list(chain.from_iterable(parts)) == phases.at(step)
        assert len(set(map(len, parts))) == 1


RATES = {"rising": {0: 0.2, 1: 0.6}, "falling": {0: 0.6, 1: 0.2}, "between": {0: 0.2, 0.5: 0.6, 1: 0.2}}


@pytest.mark.parametrize("shape", RATES)
@pytest.mark.parametrize("kind", ["linear", "steps"])
def test_disjoint_masks_fit_in_by_the_largest_rate_of_a_schedule(tmp_path, kind, shape):
    """Of 10 maskable positions two masks of 2 or 5 targets, but not of 6: told before the run begins."""

    def made(rates):
        masking = runs.Masking(proposal="uniform/disjoint:2", mask_rate={kind: rates})
        return runs.trainer(tmp_path, masking, train=ALIKE)

    with pytest.raises(
        GradvarError, match="2 disjoint masks do not fit into a sentence of 10 maskable positions with 6"
    ):
        made(RATES[shape])
    assert made({share: min(rate, 0.5) for share, rate in RATES[shape].items()}).joint.masks == 2


def test_disjoint_masks_fit_into_the_pieces_of_every_phase(tmp_path):
    """Two masks of a target each fit into pieces of two words, but not of one."""

    def made(length):
        lengths = Schedule("steps", (0.0, 0.5), (12, length))
        return runs.trainer(tmp_path, "uniform/disjoint:2", mask_rate=0.2, train=ALIKE, max_length=lengths)

    with pytest.raises(GradvarError, match="2 disjoint masks do not fit into a sentence of 1 maskable positions"):
        made(3)
    assert made(4).course.order.phase(10)[0] == 1


def test_maskable_positions_are_counted_phase_by_phase(tmp_path):
    """`weighting: token` divides by the mean number of targets of the pieces that are shown."""
    masking = {"proposal": "uniform/simple", "weighting": "token", "mask_rate": {"steps": {0: 0.5, 0.8: 0.2}}}
    made = runs.trainer(
        tmp_path,
        runs.Masking(**masking),
        train=ALIKE,
        max_length=Schedule("steps", (0.0, 0.5), (4, 12)),
        max_steps=10,
    )
    seen = []
    for step in (0, 4, 5, 7, 8, 9):
        made.state.global_step = step
        made.follow_schedules()
        seen.append((made.joint.mask_rate, made.joint.mean_targets))
    assert seen == [(0.5, 1.0), (0.5, 1.0), (0.5, 5.0), (0.5, 5.0), (0.2, 2.0), (0.2, 2.0)]
