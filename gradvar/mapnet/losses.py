"""What a MAPNet can be fitted to: losses of log scores ``log s_i``, given gradient norms ``t_i`` of some positions.

All take ``[rows, positions]`` log scores, norms ``t >= 0`` (noisy: of one random context each), ``observed`` (where a
norm was measured) and ``maskable`` positions, and return a scalar; positions that are not maskable are left out. Rows
that say nothing, without an observed position or with norms of zero alone, are left out too; if no row is left, that is
a :class:`GradvarError`.

By default positions observed are taken for a uniformly random choice among the maskable ones. Where they were drawn
otherwise, such as by the very scores that are fitted, ``weights`` ``[rows, positions]`` correct for it: importance
weights with which ``sum_{i observed} w_i x_i`` is unbiased for ``mean_{i maskable} x_i``, whatever ``x``, as ``1/(T
pi_i)`` is; anything where not observed.

They differ in what noise does to them. The best inclusion probabilities are proportional to the root mean square of
``t_i`` over contexts; :func:`log_regression` tends to its geometric mean, :func:`kl` to about its arithmetic mean, and
only :func:`variance` to the root mean square itself.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, log1p

import torch
import torch.nn.functional as F
from torch import Tensor

from gradvar.errors import GradvarError

Loss = Callable[..., Tensor]
"""``(log_scores, targets, observed, maskable, weights=None) -> scalar``."""


def log_regression(
    log_scores: Tensor, targets: Tensor, observed: Tensor, maskable: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Squared error of logarithms, ``mean_rows mean_{i observed} (log s_i - log t_i)^2``.

    Minimised by ``log s_i = E[log t_i]``: a mean square is least at the mean, for each position by itself. So ``s_i``
    is the *geometric* mean of noisy norms, below their root mean square, the more so the noisier they are.

    Not blind to the scale of ``t``, which a bounded network must reach: divide the norms by their overall median, say.
    A norm of zero has no logarithm and is left out.

    Args:
        log_scores: ``[rows, positions]``.
        targets: ``[rows, positions]`` norms; anything where not observed.
        observed: ``[rows, positions]`` bool.
        maskable: ``[rows, positions]`` bool.
        weights: Importance weights; see the module.

    Returns:
        The loss.
    """
    if weights is None:  # of the norms that have a logarithm
        weights = _uniform(observed & maskable & (targets != 0))
    log_scores, log_norms, log_weights, _ = _telling(log_scores, targets, observed, maskable, weights)
    seen = log_weights.isfinite() & log_norms.isfinite()
    difference = torch.where(seen, log_scores - log_norms, 0.0)
    return (difference.square() * log_weights.exp()).sum(dim=1).mean()


def kl(
    log_scores: Tensor, targets: Tensor, observed: Tensor, maskable: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Divergence of shares, ``mean_rows sum_i p_i log(p_i/q_i)``, over each row's observed positions.

    ``p_i = t_i / sum t`` and ``q_i = s_i / sum s``, both sums over the observed positions.

    Minimised by ``s_i`` proportional to ``t_i``: it is zero there, and positive elsewhere by Gibbs' inequality. Of
    noisy norms, all observed, by ``E[p_i]``: in ``E[-sum p_i log q_i]`` only this counts; the arithmetic mean of
    ``t_i`` where the sum hardly varies.

    Blind to the scale of ``t``, and of ``s``, in every row. A norm of zero has the share zero; a single observed
    position teaches nothing, as its shares are one.

    Args:
        log_scores: ``[rows, positions]``.
        targets: ``[rows, positions]`` norms; anything where not observed.
        observed: ``[rows, positions]`` bool.
        maskable: ``[rows, positions]`` bool.
        weights: Importance weights; see the module. The shares, ``w_i t_i/sum w t`` and ``w_i s_i/sum w s``, then
            estimate those of all positions, with a bias of the order of one over their number.

    Returns:
        The loss.
    """
    log_scores, log_norms, log_weights, _ = _telling(log_scores, targets, observed, maskable, weights)
    seen = log_weights.isfinite()
    p = (log_norms + log_weights).softmax(dim=1)  # minus infinity where not observed
    log_q = (log_scores + log_weights).log_softmax(dim=1).masked_fill(~seen, 0.0)
    return (torch.xlogy(p, p) - p * log_q).sum(dim=1).mean()


def variance(
    log_scores: Tensor,
    targets: Tensor,
    observed: Tensor,
    maskable: Tensor,
    weights: Tensor | None = None,
    *,
    epsilon: float = 0.0,
    cap: float | None = None,
) -> Tensor:
    """Second moment of the importance-weighted gradient itself: ``log mean_rows M``.

    ``M = mean_{i maskable} s_i * mean_{i observed} t_i^2/s_i``. Unbiased, over the choice of the observed positions and
    over contexts, for ``mean_i s_i * mean_i E[t_i^2]/s_i``, which is k times what single positions contribute to the
    second moment of the Horvitz-Thompson estimator with ``pi_i`` proportional to ``s_i`` (no interaction between
    targets, no ``pi_i`` cut at one; the cross terms ``g_i g_j`` are left out).

    Minimised by ``s_i`` proportional to ``sqrt(E[t_i^2])``: by Cauchy and Schwarz the product is ``(mean_i
    sqrt(E[t_i^2]))^2`` at least, with equality there alone.

    The logarithm makes steps of the optimiser blind to the overall scale of ``t``, and every ``M`` is blind to that of
    ``s``. It stands *outside* the mean over rows, as rows of larger gradients also weigh more in what a batch saves.
    A mean over rows of their logarithms would be blind to every row's scale, but has another minimiser where the
    products are noisy, pulled towards uniform scores: with one observed position a row it is uniform.
    A norm of zero, and a row of them, contributes zero to the mean.

    Args:
        log_scores: ``[rows, positions]``.
        targets: ``[rows, positions]`` norms; anything where not observed.
        observed: ``[rows, positions]`` bool.
        maskable: ``[rows, positions]`` bool.
        weights: Importance weights; see the module. ``M`` is unbiased with them as well.
        epsilon: Share of uniform inclusion, as in :class:`gradvar.masking.pps.PPS`, in [0, 1): ``s`` becomes ``(1 -
            epsilon) s/mean(s) + epsilon``, and it is these that become proportional, down to epsilon.
        cap: Importance weights ``mean(s)/s_i`` are at most this, 1 at least: as if lower scores were mixed with enough
            of uniform to have it, at no cost to the others. It tames the gradients of an early fit, and understates the
            second moment where it acts.

    Returns:
        The loss.

    Raises:
        GradvarError: If ``epsilon`` or ``cap`` is out of range.
    """  # noqa: DOC502
    check_mixing(epsilon, cap)
    log_scores, log_norms, log_weights, own = _telling(log_scores, targets, observed, maskable, weights, zeros=True)
    level = log_scores.masked_fill(~own, -torch.inf).logsumexp(dim=1) - own.sum(dim=1).to(log_scores.dtype).log()
    log_share = log_scores - level.unsqueeze(1)  # of mean one
    if epsilon:
        log_share = torch.logaddexp(log_share + log1p(-epsilon), torch.full_like(log_share, log(epsilon)))
    log_rarity = -log_share if cap is None else (-log_share).clamp(max=log(cap))
    terms = 2 * log_norms + log_rarity + log_weights
    # At once over rows and positions: of a row of zeros alone the gradient of logsumexp is not a number.
    return terms.flatten().logsumexp(dim=0) - log(len(terms))


def check_mixing(epsilon: float, cap: float | None) -> None:
    """Refuse what :func:`variance` cannot reckon with.

    Args:
        epsilon: See there.
        cap: See there.

    Raises:
        GradvarError: If one of them is out of range.
    """
    if not 0 <= epsilon < 1:
        raise GradvarError(f"the variance loss cannot mix with epsilon {epsilon:g}; give a number from 0 to below 1")
    if cap is not None and not cap >= 1:
        raise GradvarError(f"the variance loss cannot cap weights at {cap:g}; give a number from 1 up")


def language(contexts: Tensor, table: Tensor, ids: Tensor, asked: Tensor) -> Tensor:
    """Cross-entropy of a token given its surroundings, ``mean_i -log softmax_v(<c_i, e_v>)[x_i]``, in nats.

    A help beside the others: one norm a target says little about what makes tokens surprising, the token itself says
    much. As no context sees its own token, every position can be asked at once, masked or not. Minimised by
    ``<c_i, e_v> = log P(v | surroundings)`` up to a constant a context, where that can be had.

    Args:
        contexts: ``[rows, positions, width]``, ``c_i``.
        table: ``[vocabulary, width]``, the embeddings ``e_v``.
        ids: ``[rows, positions]``, the tokens ``x_i``; anything where not asked.
        asked: ``[rows, positions]`` bool, the positions that count.

    Returns:
        The loss; zero where nothing was asked.
    """
    logits = F.linear(contexts[asked], table.to(contexts.dtype))
    return F.cross_entropy(logits, ids[asked], reduction="sum") / max(1, len(logits))


LOSSES: dict[str, Loss] = {"log-regression": log_regression, "kl": kl, "variance": variance}
"""The losses by name."""


def _uniform(observed: Tensor) -> Tensor:
    """``[rows, positions]`` weights of a uniformly random choice of positions."""
    return observed / observed.sum(dim=1, keepdim=True).clamp(min=1).double()


def _telling(
    log_scores: Tensor,
    targets: Tensor,
    observed: Tensor,
    maskable: Tensor,
    weights: Tensor | None,
    zeros: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take the rows that say something.

    Returns:
        ``(log_scores, log t, log w, maskable)`` of these rows; ``log t`` and ``log w`` are minus infinity where not
        observed, ``log t`` also where it is zero. With ``zeros`` rows of norms of zero alone are among them, if not all
        are.
    """
    seen = observed & maskable
    norms = targets.double().masked_fill(~seen, 0.0)  # the logarithm of a small norm fits float32, the norm may not
    positive = (norms != 0).any(dim=1)
    if not bool(positive.any()):
        cause = "is zero" if bool(seen.any()) else "was observed"
        none = "every norm" if bool(seen.any()) else "no norm"
        raise GradvarError(f"nothing to fit a MAPNet to: {none} in the batch {cause}; give rows with observed norms")
    kept = seen.any(dim=1) if zeros else positive
    each = _uniform(seen) if weights is None else weights.double().masked_fill(~seen, 0.0)
    log_norms, log_weights = (x[kept].log().to(log_scores.dtype) for x in (norms, each))
    return log_scores[kept], log_norms, log_weights, maskable[kept]
