"""All that speaks for and against a model having memorised its training rows, and one verdict."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pathline.diagnostics.memory import Memorisation
from pathline.fields import EmpiricalField
from pathline.paths import AffinePath, GaussianPath
from pathline.typing import Batch

TIMES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
_Z = 4.0
_P = 0.001
_ROWS = 500
_DRAWS = 8
_EXCHANGES = 2000


@dataclass(frozen=True)
class FieldGap:
    """What `field_gap` returns, one entry for each of ``times``.

    Attributes:
        train: mean square distance per dimension of the field to the exact field of training rows, at their x_t.
        held_out: the same of as many held-out rows.
        p: of the loss being no less on training rows than on held-out ones, by 2,000 random exchanges of rows; where
            that is so, the least of them all is below 0.001 with probability 0.001.
    """

    times: tuple[float, ...]
    train: tuple[float, ...]
    held_out: tuple[float, ...]
    p: tuple[float, ...]

    @property
    def widest(self) -> int:
        """The entry whose ``train / held_out`` is least among those with p at most 0.001, else that of the least p."""
        clear = [i for i, p in enumerate(self.p) if p <= _P] or [self.p.index(min(self.p))]
        return min(clear, key=self._ratio)

    @property
    def ratio(self) -> float:
        """``train / held_out`` at `widest`: about 1 for a model that cannot tell its rows, near 0 for one that can."""
        return self._ratio(self.widest)

    def _ratio(self, i: int) -> float:
        return self.train[i] / max(self.held_out[i], 1e-300)


def field_gap(
    field: Callable[..., Tensor],
    path: AffinePath | GaussianPath,
    train: Float[Tensor, "n *d"],
    held_out: Float[Tensor, "h *d"],
    *,
    train_cond: Mapping[str, Tensor] = {},
    held_out_cond: Mapping[str, Tensor] = {},
    train_labels: Tensor | None = None,
    held_out_labels: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> FieldGap:
    """Is a field nearer to the closed-form field of its training rows than to that of rows it never saw?

    Both closed-form fields have equally many rows, at most 500, and each is compared at points x_t of its own rows, 8
    for a row. Which rows were held out is a matter of chance, so the two distances have one law for a model that knows
    the law of the data alone, however few rows make the fields. Late in time, where the field of the rows points at a
    row, the distance is the flow-matching loss; that has an independent value for every row and carries the test.

    Args:
        field: ``field(x, t, **cond)``; path: the path that it was trained on.
        train, held_out: rows in the units of the field, ``(n, *d)`` and ``(h, *d)``.
        train_cond, held_out_cond: a condition for each row, which the field is told.
        train_labels, held_out_labels: the value of that condition as a class for each row, which the closed-form
            fields are told; ``None``: they know nothing of it. Where no two rows share a value they point at the row.
        generator: for the choice of rows and the points.

    Raises:
        ValueError: fewer than 2 rows of a kind.

    Reference: Bertrand et al., "On the closed-form of flow matching: generalization does not arise from target
    stochasticity", arXiv:2506.03719.
    """
    count = min(len(train), len(held_out), _ROWS)
    if count < 2:
        raise ValueError(f"train and held_out must have 2 rows or more, got {len(train)} and {len(held_out)}")
    found = []
    for rows, cond, labels in ((train, train_cond, train_labels), (held_out, held_out_cond, held_out_labels)):
        chosen = torch.randperm(len(rows), generator=generator)[:count]
        own = {name: value[chosen] for name, value in cond.items()}
        classes = None if labels is None else labels[chosen]
        found.append(_distances(field, path, rows[chosen], own, classes, generator))
    (a, loss_a), (b, loss_b) = found
    return FieldGap(TIMES, tuple(a.mean(1).tolist()), tuple(b.mean(1).tolist()), _exchange(loss_a, loss_b, generator))


@dataclass(frozen=True)
class Evidence:
    """What speaks for and against memorisation; each may be missing.

    Attributes:
        samples: do samples crowd around training rows?
        field: is the field that of its training rows?
        train_log_prob, held_out_log_prob: mean log-likelihoods of rows, nats; log_prob_se: of their difference.
    """

    samples: Memorisation | None = None
    field: FieldGap | None = None
    train_log_prob: float | None = None
    held_out_log_prob: float | None = None
    log_prob_se: float | None = None

    @property
    def verdict(self) -> Literal["memorises", "overfits", "no sign", "cannot tell"]:
        """One word for all.

        - memorises: samples crowd around training rows (p at most 0.01), or at some time the field is less than half
          as far from that of training rows as from that of held-out ones and p is at most 0.001;
        - overfits: such a p without such a distance, or training rows are more likely than others by 4 standard errors;
        - cannot tell: there is no evidence; no sign: there is, and none of the above.
        """
        near = self.field is not None and min(self.field.p) <= _P
        crowd = self.samples.verdict if self.samples is not None else None
        if crowd or (self.field is not None and near and self.field.ratio < 0.5):
            return "memorises"
        if near or self._likelihood_z >= _Z:
            return "overfits"
        return "cannot tell" if crowd is None and self.field is None and self.log_prob_se is None else "no sign"

    @property
    def _likelihood_z(self) -> float:
        if self.train_log_prob is None or self.held_out_log_prob is None or not self.log_prob_se:
            return 0.0
        return (self.train_log_prob - self.held_out_log_prob) / self.log_prob_se

    def __str__(self) -> str:
        """The verdict and what it rests on, in one line."""
        parts = []
        if (s := self.samples) is not None:
            low, high = s.share_range
            parts.append(f"{s.share:.1%} of samples nearest to a held-out row (chance {low:.1%} to {high:.1%})")
        if (f := self.field) is not None:
            i = f.widest
            parts.append(
                f"field at t = {f.times[i]:g} is {f.train[i]:.3g} from that of training rows and {f.held_out[i]:.3g} "
                f"from that of held-out ones (p = {f.p[i]:.2g})"
            )
        if self.train_log_prob is not None and self.held_out_log_prob is not None:
            error = f" (se {self.log_prob_se:.2g})" if self.log_prob_se is not None else ""
            parts.append(
                f"log-likelihood {self.train_log_prob:.4g} on training rows, {self.held_out_log_prob:.4g} on held-out "
                f"ones{error}"
            )
        return f"memorisation: {self.verdict}" + (f"; {'; '.join(parts)}" if parts else "")


def _exchange(a: Tensor, b: Tensor, generator: torch.Generator | None) -> tuple[float, ...]:
    """The p of means of a ``(k, n)`` that are not below those of b ``(k, n)``, by exchanging rows, for all k jointly.

    A p counts the exchanges whose largest gap over all k, in standard deviations, is no less than the gap here.
    """
    both, n = torch.cat([a, b], 1), a.shape[1]
    both = (both - both.mean(1, keepdim=True)) / both.std(1, keepdim=True).clamp_min(1e-300)
    own = both[:, n:].sum(1)
    order = torch.rand(_EXCHANGES, 2 * n, generator=generator, dtype=both.dtype).argsort(1)
    largest = both[:, order[:, n:]].sum(2).amax(0)
    p = (1 + (largest >= own[:, None] - 1e-9).sum(1)) / (1 + _EXCHANGES)
    return tuple(p.tolist())


def _distances(
    field: Callable[..., Tensor],
    path: AffinePath | GaussianPath,
    rows: Tensor,
    cond: Mapping[str, Tensor],
    labels: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Of each row, its mean square distance to the exact field and its loss, both per dimension, ``(times, n)``."""
    exact = EmpiricalField(path, rows, labels=labels)
    label = None if labels is None else labels.repeat(_DRAWS)
    repeated = rows.repeat(_DRAWS, *[1] * (rows.ndim - 1))
    told = {name: value.repeat(_DRAWS, *[1] * (value.ndim - 1)) for name, value in cond.items()}
    found = []
    for time in TIMES:
        t = rows.new_tensor(time)
        at = path.sample(Batch(repeated), t, generator)
        v = field(at.x_t, t.expand(len(repeated)), **told)
        gaps = [
            (v - other).double().square().flatten(1).mean(1) for other in (exact(at.x_t, t, label=label), at.target)
        ]
        found.append(torch.stack([gap.reshape(_DRAWS, -1).mean(0) for gap in gaps]))
    distance, loss = torch.stack(found, 1)
    return distance, loss
