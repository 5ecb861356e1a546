"""Recipe: the numbers of a training run, as one frozen record that goes into the checkpoint."""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """How long and how a network is trained.

    Where steps, batch size or learning rate is ``None``, `fit` takes 4,000, 256 and 1e-3; the default network's are
    chosen for the data, see `pathline.train.default`.

    Attributes:
        steps: optimiser steps.
        minutes: plan the steps for this much time instead, by timing the first few.
        batch_size: rows a step.
        learning_rate: the highest; it warms up linearly and decays along a half cosine to `final` of itself.
        final: last learning rate as a share of the highest.
        warm_up: share of the steps that warm up.
        weight_decay: AdamW's.
        clip: largest norm of the gradient.
        ema: half-life of the exponential moving average of the weights, as a share of the steps; 0 is no average.
        seed: of everything that is random in the run.
    """

    steps: int | None = None
    minutes: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    final: float = 0.01
    warm_up: float = 0.05
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.1
    seed: int = 0

    def check(self) -> None:
        """Raises ValueError where a number is out of its range; a seed must be below 2^32."""
        for name, least in (("steps", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2^32 = {2**32}, got {self.seed}")
        for name in ("minutes", "learning_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        for name in ("final", "warm_up", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite and not negative, got {self.weight_decay}")

    def settled(self, steps: int = 4000, batch_size: int = 256, learning_rate: float = 1e-3) -> "Recipe":
        """The same recipe with the three numbers in place of ``None``; under ``minutes`` the steps stay open."""
        return replace(
            self,
            steps=steps if self.steps is None and self.minutes is None else self.steps,
            batch_size=batch_size if self.batch_size is None else self.batch_size,
            learning_rate=learning_rate if self.learning_rate is None else self.learning_rate,
        )

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, as a share of the highest."""
        warm = max(1, round(self.warm_up * steps))
        if step < warm:
            return (step + 1) / warm
        left = math.cos(0.5 * math.pi * min(1.0, (step - warm) / max(1, steps - warm))) ** 2
        return self.final + (1 - self.final) * left

    def decay(self, step: int, steps: int) -> float:
        """The decay of the moving average at a step: short at first, then the half-life asked for."""
        if self.ema == 0:
            return 0.0
        return min(0.5 ** (1 / max(1.0, self.ema * steps)), (1 + step) / (10 + step))
