"""One Linear layer, one sentence: formulations of its cells' moments, as `formulations.py` compares them.

All give the same: the cells' squared norms, the sum of squares within the sentence, the gap to the mean of the
sentences before, and the new sum. `products` (the per-cell products and nothing else) is the floor of whatever keeps
to direct products, however well fused; `autograd` the one product that an ordinary backward pass forms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradvar.persample.gram import squared_norms
from gradvar.persample.onepass import _BLOCK_CPU as BLOCK
from gradvar.persample.onepass import _MEAN

SEEN = 3  # sentences before this one


@dataclass
class Sentence:
    """A layer's inputs and output gradients over one sentence's cells, and what was summed before."""

    x: Tensor  # [cells, positions, inputs]
    dy: Tensor  # [cells, positions, outputs]
    sums: Tensor  # [outputs, inputs]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Cells, positions, inputs, outputs."""
        return *self.x.shape, self.dy.shape[2]


def sentence(cells: int, positions: int, inputs: int, outputs: int, shared: float = 0.0) -> Sentence:
    """Draw one; `shared` is the size of what all tokens' inputs have in common, where the gradients cancel."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, dy = draw(cells, positions, inputs), draw(cells, positions, outputs)
    if shared:
        x += shared * draw(inputs)
        dy -= dy.mean(dim=1, keepdim=True)
    return Sentence(x, dy, draw(outputs, inputs))


Found = tuple[Tensor, Tensor, Tensor]  # [cells] squared norms, sum of squares within, gap to those before


def squares(x: Tensor) -> Tensor:
    """Sum of squares of all but the first dimension: of rows in the tensor's type, the rest in float64."""
    return torch.linalg.vector_norm(x, dim=-1).double().square().flatten(1).sum(dim=1)


def by_blocks(s: Sentence, x: Tensor, block: int, after: Callable[[Tensor, slice], None]) -> None:
    """Form the products with `x`, some rows of all cells at a time."""
    cells, _, _, outputs = s.sizes
    columns = x.shape[2]
    step = max(1, min(outputs, block // (cells * columns)))
    scratch = x.new_empty(cells * step * columns)
    dy = s.dy.transpose(1, 2)
    for row in range(0, outputs, step):
        rows = slice(row, min(row + step, outputs))
        out = scratch[: cells * (rows.stop - row) * columns].view(cells, -1, columns)
        torch.bmm(dy[:, rows], x, out=out)
        after(out, rows)


def add_mean(s: Sentence, mean: Tensor, rows: slice) -> Tensor:
    """Add a mean to the sums; return its gap to those before."""
    sums = s.sums[rows]
    gap = squares(torch.sub(mean, sums, alpha=1 / SEEN).unsqueeze(0))
    sums += mean
    return gap


def direct(s: Sentence, block: int = BLOCK) -> Found:
    """What the engine does with most weights: products in blocks, their norms, the mean, its norm."""
    norm2, within, gap = torch.zeros(s.sizes[0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64), []

    def after(out: Tensor, rows: slice) -> None:
        found = squares(out)
        norm2.add_(found)
        mean = out.mean(dim=0)
        within.add_(found.sum() - len(out) * squares(mean.unsqueeze(0)).sum())
        gap.append(add_mean(s, mean, rows))

    by_blocks(s, s.x, block, after)
    return norm2, within, torch.stack(gap).sum()


def centred(s: Sentence, block: int = BLOCK) -> Found:
    """What it does where the mean leaves little: norms, mean, centre, norms."""
    norm2, within, gap = torch.zeros(s.sizes[0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64), []

    def after(out: Tensor, rows: slice) -> None:
        norm2.add_(squares(out))
        mean = out.mean(dim=0)
        within.add_(squares(out.sub_(mean)).sum())
        gap.append(add_mean(s, mean, rows))

    by_blocks(s, s.x, block, after)
    return norm2, within, torch.stack(gap).sum()


def one_read(s: Sentence) -> Found:
    """Centre first; one small product of the deviations and the mean gives norms and squares alike."""
    cells = s.sizes[0]
    inner, crossed, mean2 = torch.zeros(cells, dtype=torch.float64), torch.zeros(cells, dtype=torch.float64), []
    gap = []

    def after(out: Tensor, rows: slice) -> None:
        mean = out.mean(dim=0)
        flat = torch.cat([out.sub_(mean), mean.unsqueeze(0)]).view(cells + 1, -1)
        gram = (flat @ flat.T).double()
        inner.add_(gram.diagonal()[:-1])
        crossed.add_(gram[:-1, -1])
        mean2.append(gram[-1, -1])
        gap.append(add_mean(s, mean, rows))

    by_blocks(s, s.x, BLOCK, after)
    return inner + 2 * crossed + torch.stack(mean2).sum(), inner.sum().unsqueeze(0), torch.stack(gap).sum()


def mean_in_one_product(s: Sentence) -> tuple[Tensor, Tensor]:
    """The sentence's mean by one product over all its tokens; returns the gap and its squared norm."""
    cells, _, inputs, outputs = s.sizes
    x, dy = s.x.flatten(0, 1) / cells, s.dy.flatten(0, 1)
    step, gap, norm2 = max(1, _MEAN // inputs), [], []
    scratch = x.new_empty(step, inputs)
    for row in range(0, outputs, step):
        rows = slice(row, min(row + step, outputs))
        mean = torch.mm(dy[:, rows].T, x, out=scratch[: rows.stop - row])
        norm2.append(squares(mean.unsqueeze(0)))
        gap.append(add_mean(s, mean, rows))
    return torch.stack(gap).sum(), torch.stack(norm2).sum()


def gram(s: Sentence, dtype: torch.dtype = torch.float64) -> Found:
    """Ghost norms: inner products of the cells' gradients from those of tokens, each pair of cells once."""
    cells, positions, _, _ = s.sizes

    def inner(a: Tensor) -> list[Tensor]:
        """Inner products of a cell's tokens with its own and those of the cells after it."""
        totals = [torch.zeros(positions, (cells - j) * positions, dtype=dtype) for j in range(cells)]
        for part in a.split(1 << 12, dim=2):
            part = part.to(dtype)
            for cell, total in enumerate(totals):
                total.addmm_(part[cell], part[cell:].flatten(0, 1).T)
        return totals

    table = torch.zeros(cells, cells, dtype=torch.float64)
    for cell, (x, dy) in enumerate(zip(inner(s.x), inner(s.dy), strict=True)):
        table[cell, cell:] = table[cell:, cell] = (x * dy).view(positions, -1, positions).sum(dim=(0, 2))
    centring = torch.eye(cells, dtype=torch.float64) - 1 / cells
    return table.diagonal().clone(), (centring @ table).trace().unsqueeze(0), mean_in_one_product(s)[0]


def gram_norms(s: Sentence) -> Found:
    """What the engine does with decoders: the cells' norms by inner products of their own tokens alone."""
    norm2 = squared_norms(s.dy, s.x, s.sizes[0])
    gap, of_mean = mean_in_one_product(s)
    return norm2, (norm2.sum() - len(norm2) * of_mean).unsqueeze(0), gap


def lq(s: Sentence) -> Found:
    """Rotate the inputs into the space that the sentence's tokens span; direct there, the mean by one product."""
    cells, positions, _, _ = s.sizes
    triangle = torch.linalg.qr(s.x.flatten(0, 1).T, mode="r").R  # [min(inputs, tokens), tokens]
    compressed = Sentence(triangle.T.reshape(cells, positions, -1).contiguous(), s.dy, s.sums)
    norm2, within = torch.zeros(cells, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

    def after(out: Tensor, rows: slice) -> None:
        norm2.add_(squares(out))
        within.add_(squares(out.sub_(out.mean(dim=0))).sum())

    by_blocks(compressed, compressed.x, BLOCK, after)
    return norm2, within, mean_in_one_product(s)[0]


def products(s: Sentence) -> None:
    """The per-cell products alone."""
    by_blocks(s, s.x, BLOCK, lambda out, rows: None)


def autograd(s: Sentence) -> None:
    """What an ordinary backward pass forms."""
    s.sums += torch.mm(s.dy.flatten(0, 1).T, s.x.flatten(0, 1))


FORMULATIONS: dict[str, Callable[[Sentence], Found | None]] = {
    "autograd": autograd,
    "products": products,
    "direct": direct,
    "centred": centred,
    "direct, blocks of 2^16": lambda s: direct(s, 1 << 16),
    "direct, blocks of 2^18": lambda s: direct(s, 1 << 18),
    "direct, blocks of 2^22": lambda s: direct(s, 1 << 22),
    "direct, at least 128 rows": lambda s: direct(s, max(BLOCK, 128 * s.sizes[0] * s.sizes[2])),
    "one read": one_read,
    "norms by gram": gram_norms,
    "gram, float64": gram,
    "gram, float32": lambda s: gram(s, torch.float32),
    "LQ": lq,
}
