"""Sources: the law p_0 that a flow starts from."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class StandardNormal:
    r"""$\mathcal N(0, I)$ on states of any shape."""

    def sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draws a tensor of ``shape = (n, *d)``."""
        return torch.randn(shape, generator=generator, dtype=dtype, device=device)

    def sobol(self, shape: tuple[int, ...], seed: int) -> Tensor:
        """Points of a scrambled Sobol sequence through the normal quantiles, float64, ``shape = (n, *d)``.

        They fill the law evenly, so distances between finite sets of them have a low noise floor.
        """
        engine = torch.quasirandom.SobolEngine(math.prod(shape[1:]), scramble=True, seed=seed)
        u = engine.draw(shape[0], dtype=torch.float64).clamp(1e-16, 1 - 1e-16)
        return torch.special.ndtri(u).reshape(shape)

    def log_prob(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """Log-density of each row, in nats."""
        flat = x.flatten(1) if x.ndim > 1 else x[:, None]
        return -0.5 * flat.square().sum(1) - 0.5 * flat.shape[1] * math.log(2 * math.pi)


@dataclass(frozen=True)
class Points:
    """The rows of a data set ``(n, *d)``, drawn uniformly with replacement; it has no density."""

    data: Tensor = field(repr=False)

    def sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draws ``shape[0]`` rows.

        Raises:
            ValueError: ``shape[1:]`` is not the shape of a row.
        """
        if tuple(shape[1:]) != tuple(self.data.shape[1:]):
            raise ValueError(f"shape must end in the rows' shape {tuple(self.data.shape[1:])}, got {tuple(shape)}")
        where = generator.device if generator is not None else self.data.device
        rows = torch.randint(len(self.data), (shape[0],), generator=generator, device=where)
        return self.data[rows.to(self.data.device)].to(device=device, dtype=dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        raise ValueError("a source made of points has no density; give a source that has one")
