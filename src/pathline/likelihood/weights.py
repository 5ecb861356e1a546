"""Samples of one law made to stand for another."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Importance:
    """What `importance` returns.

    Attributes:
        weights: shares that sum to one, shape ``(n,)``: ``(weights * f(x)).sum()`` estimates the target's mean of f.
        effective_size: Kish's effective sample size, from 1 to n.
        log_normaliser: estimate of the log of the target's integral, 0 for a density that integrates to one.
    """

    weights: Tensor
    effective_size: float
    log_normaliser: float


def importance(log_target: Float[Tensor, " n"], log_proposal: Float[Tensor, " n"]) -> Importance:
    r"""Weights $w_i \propto p(x_i) / q(x_i)$ of samples x_i of q, so that they stand for p, in float64.

    The effective sample size is $(\sum w)^2 / \sum w^2$. A sample with no density under the target weighs nothing.
    It tells little where q misses a part of p altogether.

    Args:
        log_target: log p at the samples, up to a constant.
        log_proposal: log q at the samples, as from `sample_with_log_prob`.

    Raises:
        ValueError: other shapes, log_proposal not finite, NaN or infinity in log_target, or no weight at all.

    Reference: Kish, "Survey Sampling", 1965; Mueller et al., "Neural Importance Sampling", arXiv:1808.03856.

    >>> importance(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 0.0])).effective_size
    2.0
    """
    if log_target.ndim != 1 or len(log_target) == 0 or log_target.shape != log_proposal.shape:
        raise ValueError(
            "log_target and log_proposal must be numbers, one a sample, "
            f"got shapes {tuple(log_target.shape)} and {tuple(log_proposal.shape)}"
        )
    p, q = log_target.double(), log_proposal.double()
    if not bool(q.isfinite().all()):
        raise ValueError(f"log_proposal must be finite, but {int((~q.isfinite()).sum())} numbers are not")
    if bool((p.isnan() | (p == math.inf)).any()):
        raise ValueError("log_target must not be NaN or infinity: leave such samples out")
    total = torch.logsumexp(p - q, 0)
    if float(total) == -math.inf:
        raise ValueError("log_target must be finite at one sample at least: the proposal misses the target")
    weights = (p - q - total).exp()
    return Importance(weights, float(1 / weights.square().sum()), float(total) - math.log(len(p)))
