"""Gradients of groups of cells: as many cells for every arm, and the gradient of their mean loss."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import what_helps


class Fake:
    """An objective whose cell's loss is the product of its sentence and the parameter, times the number of its mask."""

    def __init__(self, together):
        self.proposal = SimpleNamespace(design=SimpleNamespace(cells=together))
        self.model = torch.nn.Linear(1, 1)
        self.cells = []

    def draw(self, data, draws, seed):
        cells = [sentence * (1 + mask) for sentence in data for mask in range(int(np.prod(draws)))]
        self.cells.append(len(cells))
        return torch.tensor(cells, dtype=torch.float32)

    def losses(self, batch):
        return batch * self.model.weight.sum()


@pytest.mark.parametrize(("together", "masks"), [(1, 1), (1, 2), (2, 1)])
def test_every_arm_has_as_many_cells_and_the_gradient_of_their_mean(together, masks):
    objective = Fake(together)
    found = what_helps.group_means(objective, [np.arange(1, 9), np.arange(9, 17)], masks)
    assert objective.cells == [8, 8]
    each = masks * together
    for row, first in zip(found, (1, 9), strict=True):
        sentences = np.arange(first, first + 8 // each)
        assert row.tolist() == pytest.approx([np.outer(sentences, np.arange(1, each + 1)).mean(), 0.0])


def test_gains_and_speeds_are_ranked_with_and_without_the_cost_that_both_are_divided_by():
    """By hand: of three pairs of arms, two agree in seconds, where one arm is dear, and one in steps."""
    told = ((1.0, 1.2, 1.0, -0.3), (1.5, 1.1, 1.0, -0.2), (1.2, 1.3, 10.0, -0.1))  # gain, speed, both in steps
    points = [
        what_helps.Point(
            str(number), (gain / cost,) * 3, (speed / cost,) * 3, bound=False, loss=loss, costs=(cost, cost)
        )
        for number, (gain, speed, cost, loss) in enumerate(told)
    ]
    found = what_helps.agreement(points)
    assert found["seconds"][0] == pytest.approx(1 / 3)
    assert found["steps"][0] == pytest.approx(-1 / 3)
    assert found["losses"][0] == pytest.approx(1 / 3)
