"""Does a model repeat its training rows?"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_NUMBERS = 2**22


@dataclass(frozen=True)
class Memorisation:
    """What `memorisation` returns.

    Attributes:
        ratio: median over samples of the distance to the nearest training row over that to the nearest held-out row.
        ratio_range: where 99% of random splits of the same rows have theirs.
        share: of samples whose nearest row of all is held out.
        share_range: where 99% of random splits have theirs.
        p: share of the splits, the real one included, with as small a ``share`` as the real one or smaller.
        samples, train, held_out: how many of each were compared.
    """

    ratio: float
    ratio_range: tuple[float, float]
    share: float
    share_range: tuple[float, float]
    p: float
    samples: int
    train: int
    held_out: int

    @property
    def verdict(self) -> bool | None:
        """Whether samples crowd around training rows (p at most 0.01); ``None`` where there are too few rows to tell.

        There are too few where a random split, too, may well leave no sample nearest to a held-out row.
        """
        if self.share_range[0] == 0:
            return None
        return self.p <= 0.01


def memorisation(
    samples: Float[Tensor, "m *d"],
    train: Float[Tensor, "n *d"],
    held_out: Float[Tensor, "h *d"],
    *,
    splits: int = 400,
    generator: torch.Generator | None = None,
) -> Memorisation:
    """Do samples lie nearer to the rows of the training than to equally real ones that it never saw?

    A model that knows the law but not its rows cannot tell which rows were held out: the real split is then like
    any random split of the same rows into parts of the same sizes, which is the test. Distances are Euclidean, every
    column over its standard deviation.

    Args:
        samples: generated rows, train: rows of the training, held_out: rows that it never saw, all ``(., *d)``.
        splits: random splits to compare with.
        generator: for the splits.

    Raises:
        ValueError: fewer than 2 rows of a kind, rows of different shapes or that are not finite, splits below 99.
    """
    parts = {"samples": samples, "train": train, "held_out": held_out}
    for name, rows in parts.items():
        if len(rows) < 2 or rows.shape[1:] != samples.shape[1:] or not bool(rows.isfinite().all()):
            raise ValueError(f"{name} must be 2 or more finite rows like the samples, got shape {tuple(rows.shape)}")
    if splits < 99:
        raise ValueError(f"splits must be at least 99, got {splits}")
    real = torch.cat([train, held_out]).flatten(1).double()
    scale = real.std(0)
    scale = torch.where(scale > 0, scale, 1.0)
    near, order = _nearest(samples.flatten(1).double() / scale, real / scale, len(held_out))
    held = torch.arange(len(real)) >= len(train)
    own = _split_view(near, order, held)
    others = []
    for _ in range(splits):
        others.append(_split_view(near, order, held[torch.randperm(len(real), generator=generator)]))
    ratios, shares = torch.tensor(others, dtype=torch.float64).T
    ends = torch.tensor([0.005, 0.995], dtype=torch.float64)
    low, high = torch.quantile(ratios, ends).tolist()
    least, most = torch.quantile(shares, ends).tolist()
    p = (1 + int((shares <= own[1]).sum())) / (1 + splits)
    return Memorisation(own[0], (low, high), own[1], (least, most), p, len(samples), len(train), len(held_out))


def _nearest(samples: Tensor, rows: Tensor, held_out: int) -> tuple[Tensor, Tensor]:
    """For each sample its nearest rows, nearest first: so many that one of any ``held_out`` rows is among them."""
    k = min(len(rows), math.ceil(16 * len(rows) / held_out))
    step = max(1, _NUMBERS // len(rows))
    parts = [
        torch.cdist(some, rows, compute_mode="donot_use_mm_for_euclid_dist").topk(k, largest=False)
        for some in samples.split(step)
    ]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _split_view(near: Tensor, order: Tensor, held: Tensor) -> tuple[float, float]:
    """Median ratio of the nearest distances to the two parts of a split, and the share nearest to what is held out."""
    out = held[order]
    to_train, to_held = (near.masked_fill(~part, math.inf).amin(1).clamp_max(float(near.max())) for part in (~out, out))
    ratio = torch.where(to_held > 0, to_train / to_held.clamp_min(1e-300), 1.0)
    return float(ratio.median()), float(out[:, 0].double().mean())
