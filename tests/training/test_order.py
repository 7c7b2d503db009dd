from collections import Counter
from itertools import chain, count, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvar.errors import GradvarError
from gradvar.training.order import Order, RankBatches

SIZES = [(1, 1), (7, 1), (7, 3), (7, 5), (7, 7), (12, 4), (12, 5)]  # sequences, and those of a step


def stream(order, length):
    """The first places of a run, step after step."""
    return list(islice(chain.from_iterable(order.at(step) for step in count()), length))


@pytest.mark.parametrize(("rows", "batch"), SIZES)
def test_each_epoch_holds_every_sequence_once(rows, batch):
    places = stream(Order(rows, batch, seed=3), 5 * rows)
    for epoch in range(5):
        part = places[epoch * rows : (epoch + 1) * rows]
        assert {place.epoch for place in part} == {epoch}
        assert sorted(place.row for place in part) == list(range(rows))


@pytest.mark.parametrize(("rows", "batch"), SIZES)
def test_every_step_is_whole_and_an_epochs_tail_is_carried_over(rows, batch):
    order = Order(rows, batch, seed=3)
    for step in range(20):
        places = order.at(step)
        assert [place.step for place in places] == [step] * batch
        assert [place.epoch for place in places] == [
            number // rows for number in range(step * batch, (step + 1) * batch)
        ]


def test_a_step_is_a_pure_function_of_its_number():
    """Whatever was asked before; an order keeps the last epochs in memory, so that far steps are asked for, too."""
    steps = [0, 1000, 3, 4, 1000, 2, 0, 999, 57, 3]
    order = Order(7, 3, seed=3)
    assert [order.at(step) for step in steps] == [Order(7, 3, seed=3).at(step) for step in steps]


def test_epochs_and_seeds_have_orders_of_their_own():
    """Of 20 sequences: that two orders agree by chance has a probability of 1/20!."""
    orders = [
        tuple(place.row for place in Order(20, 20, seed).at(epoch)) for seed in (0, 1, 2**32 - 1) for epoch in range(4)
    ]
    assert len(set(orders)) == len(orders)


def test_the_first_sequences_of_an_epoch_are_anyones():
    """Each of 5 sequences is first in about 400 of 2,000 epochs; 6 standard deviations are 107 (false alarm 1e-8)."""
    firsts = Counter(Order(5, 5, seed=3).at(epoch)[0].row for epoch in range(2000))
    assert sorted(firsts) == list(range(5))
    assert max(abs(found - 400) for found in firsts.values()) < 107


def test_no_memory_grows_with_the_epochs():
    order = Order(7, 3, seed=3)
    for step in range(200):
        order.at(step)
    assert len(order._last) <= 2


@settings(deadline=None, max_examples=150)
@given(data=st.data(), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), tokens=st.integers(1, 200))
def test_a_budget_in_tokens_is_met_by_the_fewest_steps(data, lengths, tokens):
    order = Order(len(lengths), data.draw(st.integers(1, len(lengths))), data.draw(st.integers(0, 5)))
    seen = steps = 0
    while seen < tokens:
        seen += sum(lengths[place.row] for place in order.at(steps))
        steps += 1
    assert order.steps_for(tokens, np.array(lengths)) == steps


@pytest.mark.parametrize("tokens", [1, 30, 31, 10**12 * 30])
def test_a_budget_of_many_epochs_costs_no_more_than_one(tokens):
    """Sequences of 10 tokens each, one a step: every token begun is a step's."""
    assert Order(3, 1, seed=3).steps_for(tokens, np.full(3, 10)) == -(-tokens // 10)


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize(("accumulation", "world"), [(1, 1), (3, 1), (1, 4), (2, 3), (3, 2), (12, 1), (1, 12)])
def test_ranks_and_micro_batches_share_out_a_step(accumulation, world, start):
    """In the order of the step, micro-batch by micro-batch, so that each of them is the same however it is shared."""
    order = Order(17, 12, seed=3)
    loaders = [iter(RankBatches(order, accumulation, rank, world, lambda: start)) for rank in range(world)]
    for step in range(start, start + 4):
        parts = [[next(loader) for loader in loaders] for _ in range(accumulation)]
        assert {len(part) for micro in parts for part in micro} == {12 // accumulation // world}
        assert [place for micro in parts for part in micro for place in part] == order.at(step)


def test_where_it_begins_is_asked_whenever_it_begins():
    at = 0
    batches = RankBatches(Order(7, 3, seed=3), 1, 0, 1, lambda: at)
    assert next(iter(batches))[0].step == 0
    at = 6
    assert [batch[0].step for batch in islice(batches, 3)] == [6, 7, 8]


@pytest.mark.parametrize(("batch", "accumulation", "world"), [(12, 5, 1), (12, 1, 5), (12, 3, 8), (1, 2, 1)])
def test_a_step_that_cannot_be_shared_out_is_refused(batch, accumulation, world):
    with pytest.raises(GradvarError) as caught:
        RankBatches(Order(17, batch, seed=3), accumulation, 0, world, lambda: 0)
    words = f"{batch} sequences a step cannot be shared among {world} processes with {accumulation} micro-batches"
    assert str(caught.value) == f"{words} each; give a multiple"


def test_fewer_sequences_than_a_step_takes_are_refused():
    words = "hold 3 sequences, fewer than the 4 of one step; give more text, a smaller batch, or shorter sequences"
    with pytest.raises(GradvarError, match=words):
        Order(3, 4, seed=0)
