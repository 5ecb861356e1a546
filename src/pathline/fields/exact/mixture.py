"""What is the same for every family of components: one pass over chunks of them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pathline.fields.exact.chunks import CHUNK, Chunk
from pathline.fields.exact.paths import ExactPath
from pathline.fields.exact.queries import is_far
from pathline.paths import as_time, one_time
from pathline.sources import check_tensor

Statistic = Literal["velocity", "score", "data", "divergence", "classes"]

SMALLEST = -690.0
"""Exponents below it are taken as it is, short of the numbers on which exp is slow."""


class MixtureField(ABC):
    """A field that is the posterior mean of its components' fields.

    Its velocity without labels can be compiled in one graph, but for sources and bridges that take pairs of components.
    """

    path: ExactPath
    shape: torch.Size
    log_weights: Tensor
    labels: Tensor | None = None
    open_ends: dict[float, float | None]
    """Ends of [0, 1] at which there is no velocity, each with the time of the last call before it."""

    @abstractmethod
    def chunk(self, x: Tensor, t: Tensor, rows: slice) -> Chunk:
        """The components ``rows`` seen from ``x`` ``(b, D)`` at ``t`` ``(1,)`` or ``(b,)``, all float64."""

    @abstractmethod
    def chunk_width(self, times: int) -> int:
        """Numbers that a chunk holds for each row and component, given how many times it is asked for."""

    def __call__(self, x: Float[Tensor, "b *d"], t: Float[Tensor, "*b"], /, *, label: Tensor | None = None) -> Tensor:
        """The velocity u_t(x), shaped like ``x``; a row that is not finite gives NaN, and spoils no other.

        Raises:
            ValueError: t outside [0, 1] or at an end without a value (looked at on the CPU, not by a compiler), or
                misshapen; x of another row shape or not floating point; a label that the data have not; other than
                tensors, or tensors on another device than the data.
        """
        _, (velocity,) = self._expect(x, t, label, "velocity")
        return velocity.reshape(x.shape).to(x.dtype)

    def log_prob(self, x: Tensor, t: Tensor, *, label: Tensor | None = None) -> Tensor:
        """log p_t(x) in nats, shape ``(b,)``."""
        log_prob, _ = self._expect(x, t, label)
        return log_prob.to(x.dtype)

    def score(self, x: Tensor, t: Tensor, *, label: Tensor | None = None) -> Tensor:
        """The gradient of log p_t at ``x``, shaped like ``x``."""
        _, (score,) = self._expect(x, t, label, "score")
        return score.reshape(x.shape).to(x.dtype)

    def posterior_mean(self, x: Tensor, t: Tensor, *, label: Tensor | None = None) -> Tensor:
        """E[x1 given x_t = x], shaped like ``x``."""
        _, (data,) = self._expect(x, t, label, "data")
        return data.reshape(x.shape).to(x.dtype)

    def divergence(self, x: Tensor, t: Tensor, *, label: Tensor | None = None) -> Tensor:
        """The divergence of u_t at ``x``, shape ``(b,)``, without automatic differentiation."""
        return self.velocity_and_divergence(x, t, label=label)[1]

    def velocity_and_divergence(self, x: Tensor, t: Tensor, *, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both in one pass over the components: shapes ``(b, *d)`` and ``(b,)``."""
        _, (parts,) = self._expect(x, t, label, "divergence")
        d = self.shape.numel()
        inner, score, velocity_step, velocity = parts.split([1, d, d, d], 1)
        divergence = inner[:, 0] - (velocity_step * score).sum(1)
        return velocity.reshape(x.shape).to(x.dtype), divergence.to(x.dtype)

    def jvp(self, x: Tensor, t: Tensor, v: Tensor, *, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The velocity at ``x`` and its Jacobian in x applied to ``v``, both shaped like ``x``, in one forward pass.

        Raises:
            ValueError: ``v`` of another shape than ``x``.
        """
        check_tensor("v", v)
        check_tensor("x", x)
        if v.shape != x.shape:
            raise ValueError(f"v must be shaped like x {tuple(x.shape)}, got {tuple(v.shape)}")
        both = torch.func.jvp(lambda at: self(at, t, label=label), (x,), (v.to(x),))
        return both[0], both[1]

    def posterior_sample(
        self, x: Tensor, t: Tensor, generator: torch.Generator | None = None, *, label: Tensor | None = None
    ) -> Tensor:
        """A draw of x1 given x_t = x for every row, shaped like ``x``."""
        time = self._check(x, t)
        self._log_total(label, len(x))
        flat = x.detach().reshape(len(x), self.shape.numel()).double()
        labels = None if label is None else label.expand(len(x))
        step = self._rows_at_once(len(time))
        draws = []
        for first in range(0, len(x), step):
            rows = slice(first, first + step)
            own = own_times(time, rows)
            which = self._component(flat[rows], own, None if labels is None else labels[rows], generator)
            draws.append(self._draw(flat[rows], own, which, generator))
        return torch.cat([flat[:0], *draws]).reshape(x.shape).to(x.dtype)

    def _component(self, x: Tensor, t: Tensor, label: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """A component of the posterior for every row ``(b,)``: the largest log-weight with Gumbel noise."""
        far, step = is_far(x), self._components_at_once(len(x), len(t))
        best, which = x.new_full((len(x),), -math.inf), torch.zeros(len(x), dtype=torch.long, device=x.device)
        for first in range(0, len(self.log_weights), step):
            rows = slice(first, first + step)
            logits, _ = self._logits(self.chunk(x, t, rows), rows, label, far)
            noise = torch.empty_like(logits).exponential_(generator=generator).log()
            value, index = (logits - noise).max(1)
            which = torch.where(value > best, first + index, which)
            best = torch.maximum(best, value)
        return which

    @abstractmethod
    def _draw(self, x: Tensor, t: Tensor, which: Tensor, generator: torch.Generator | None) -> Tensor:
        """x1 ``(b, D)`` given x and the component of every row."""

    def _expect(
        self, x: Tensor, t: Tensor, label: Tensor | None, *statistics: Statistic
    ) -> tuple[Tensor, list[Tensor]]:
        time, log_total = self._check(x, t), self._log_total(label, len(x))
        flat = x.reshape(len(x), self.shape.numel()).double()
        labels = None if label is None else label.expand(len(x))
        step = self._rows_at_once(len(time))
        parts = []
        for first in range(0, max(1, len(x)), step):
            rows = slice(first, first + step)
            own = None if labels is None else labels[rows]
            parts.append(self._expect_rows(flat[rows], own_times(time, rows), own, statistics))
        log_prob, *means = (torch.cat(part) for part in zip(*parts, strict=True))
        return log_prob - log_total, means

    def _expect_rows(self, x: Tensor, t: Tensor, label: Tensor | None, statistics: Sequence[Statistic]) -> list[Tensor]:
        top = x.new_full((len(x), 1), torch.finfo(x.dtype).min)
        total, sums = x.new_zeros(len(x), 1), [0.0] * len(statistics)
        far, shared, step = is_far(x), 0.0, self._components_at_once(len(x), len(t))
        for first in range(0, len(self.log_weights), step):
            rows = slice(first, first + step)
            chunk = self.chunk(x, t, rows)
            logits, shared = self._logits(chunk, rows, label, far)
            new_top = torch.maximum(top, logits.detach().amax(1, keepdim=True))
            shrink, w = (top - new_top).exp(), (logits - new_top).clamp_min(SMALLEST).exp()
            total = total * shrink + w.sum(1, keepdim=True)
            sums = [s * shrink + self._sum(name, chunk, rows, w) for s, name in zip(sums, statistics, strict=True)]
            top = new_top
        return [(top + total.log() + shared)[:, 0], *(s / total for s in sums)]

    def _logits(self, chunk: Chunk, rows: slice, label: Tensor | None, far: bool) -> tuple[Tensor, Tensor | float]:
        """Logs of the weights of the components ``rows``, none of other labels, less a shared term; and that term."""
        logits, shared = chunk.relative() if far else (chunk.log_prob, 0.0)
        if label is not None and self.labels is not None:
            logits = logits.masked_fill(label[:, None] != self.labels[rows], -math.inf)
        return logits, shared

    def _sum(self, statistic: Statistic, chunk: Chunk, rows: slice, w: Tensor) -> Tensor:
        """The statistic summed over the components ``rows``, weighted by ``w`` ``(b, n)``."""
        return getattr(chunk, statistic)(w)

    def _rows_at_once(self, times: int) -> int:
        """Rows for which a chunk has room, with all components or 4096 of them."""
        return max(1, CHUNK // max(1, min(len(self.log_weights), 4096) * self.chunk_width(times)))

    def _components_at_once(self, n: int, times: int) -> int:
        """Components for which a chunk has room, with ``n`` rows."""
        return max(1, CHUNK // max(1, n * self.chunk_width(times), self.shape.numel()))

    def _check(self, x: Tensor, t: Tensor) -> Tensor:
        device = self.log_weights.device
        check_tensor("x", x, device)
        check_tensor("t", t, device)
        if x.ndim == 0 or x.shape[1:] != self.shape:
            raise ValueError(f"x must have rows of shape {tuple(self.shape)}, got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"x must be floating point, as the results are in its dtype, got {x.dtype}")
        time = as_time(t, x).double()
        time = time.reshape(-1)[:1] if one_time(time) else time
        if time.device.type == "cpu" and not torch.compiler.is_compiling():
            if not bool(((time >= 0) & (time <= 1)).all()):
                raise ValueError(f"t must lie in [0, 1], got values in [{time.min():.6g}, {time.max():.6g}]")
            for end in self.open_ends:
                if bool((time == end).any()):
                    raise ValueError(f"t must not be {end:g}: this exact field has no value there")
        return time if len(time) else time.new_full((1,), 0.5)  # no rows: the empty answer is that of any one time

    def _log_total(self, label: Tensor | None, n: int) -> Tensor:
        if label is None:
            return torch.logsumexp(self.log_weights, 0)
        if self.labels is None:
            raise ValueError("label was given, but the field was made without labels")
        check_tensor("label", label, self.labels.device)
        if label.ndim > 1 or (label.ndim == 1 and len(label) != n):
            raise ValueError(f"label must have shape () or ({n},), got {tuple(label.shape)}")
        kinds, totals = self._totals
        place = torch.searchsorted(kinds, label.contiguous()).clamp_max(len(kinds) - 1)
        found = kinds[place] == label
        if not bool(found.all()):
            unknown = label.reshape(-1)[~found.reshape(-1)][0].item()
            raise ValueError(f"label must be one of the data's, with weight, e.g. {kinds[:10].tolist()}, got {unknown}")
        return totals[place].log()

    @cached_property
    def _totals(self) -> tuple[Tensor, Tensor]:
        """The labels whose components have weight, in order, and their weights."""
        assert self.labels is not None
        kinds, inverse = self.labels.unique(return_inverse=True)
        totals = torch.zeros(len(kinds), dtype=torch.float64, device=kinds.device)
        totals = totals.index_add(0, inverse, self.log_weights.exp())
        return kinds[totals > 0], totals[totals > 0]


def own_times(t: Tensor, rows: slice | Tensor) -> Tensor:
    """The times of ``rows``; one that all share stays one."""
    return t if len(t) == 1 else t[rows]
