"""Random signed sums of a matrix, short enough to keep for every datum, that preserve inner products on average."""

from __future__ import annotations

import torch
from torch import Tensor

# Numbers kept of one datum and parameter. An inner product of u and v is off by about |u||v|/sqrt(_SIZE).
_SIZE = 1024


def sketch_size(rows: int, columns: int) -> int:
    """Count the numbers that are kept of a matrix of this shape."""
    count, buckets = _shape(rows, columns)
    return count * buckets


def _shape(rows: int, columns: int) -> tuple[int, int]:
    """Signed sums of the rows, and buckets of the columns."""
    if rows * columns <= _SIZE:
        return rows, columns
    count = min(rows, max(1, _SIZE // columns))
    return count, min(columns, _SIZE // count)


class Sketch:
    """A linear map ``S`` of matrices to a few numbers with ``E <S u, S v> = <u, v>`` over its random signs.

    ``(S u)[k, b] = sum_r sum_{c = b mod buckets} E[k, r] d[r + c] u[r, c]`` with independent signs ``E`` (over the
    square root of their rows) and ``d``: a count sketch of the columns (Charikar, Chen and Farach-Colton, 2002)
    after random signs of the rows (Alon, Matias and Szegedy, 1996). The signs ``E[k, r] d[r + c]`` of two elements
    are independent, so the expectation is exact; no table of the matrix's size is needed. Small matrices are kept
    whole, row by row.

    Args:
        rows: Rows of the matrices.
        columns: Columns.
        seed: Chooses the signs; different parameters need different ones.
        dtype: Type of the matrices.
        device: Where they live.
    """

    def __init__(self, rows: int, columns: int, seed: int, dtype: torch.dtype, device: torch.device | str) -> None:
        self.whole = whole = rows * columns <= _SIZE
        generator = torch.Generator().manual_seed(seed)

        def signs(*shape: int) -> Tensor:
            return torch.randint(0, 2, shape, generator=generator).to(dtype) * 2 - 1

        count, self._buckets = _shape(rows, columns)
        mixed = torch.eye(rows, dtype=dtype) if whole else signs(count, rows) / count**0.5
        self._rows = mixed.to(device)
        self._signs = (torch.ones(rows + columns, dtype=dtype) if whole else signs(rows + columns)).to(device)
        self.shape = (count, columns)
        self.size = count * self._buckets

    def project(self, values: Tensor, rows: slice | Tensor) -> Tensor:
        """Sum some rows with their signs.

        Args:
            values: ``[..., rows, columns]``.
            rows: Which rows of the matrix they are.

        Returns:
            ``[..., count, columns]`` (:attr:`shape`), to be added up over all rows.
        """
        windows = self._signs.unfold(0, values.shape[-1], 1)  # d[r + c], seen as a matrix
        return torch.matmul(self._rows[:, rows], values * windows[rows])

    def fold(self, projected: Tensor) -> Tensor:
        """Finish: ``[..., count, columns]`` sums of all rows to ``[..., size]``."""
        *front, count, columns = projected.shape
        if columns == self._buckets:
            return projected.flatten(-2)
        padded = torch.nn.functional.pad(projected, (0, -columns % self._buckets))
        turns = padded.shape[-1] // self._buckets
        return padded.view(*front, count, turns, self._buckets).sum(dim=-2).flatten(-2)
