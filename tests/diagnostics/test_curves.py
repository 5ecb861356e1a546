"""Floors, R2 and memorisation, against closed forms."""

import pytest
import torch
from torch import Tensor

from pathline import AffinePath, EmpiricalField, GaussianMixtureField, schedules
from pathline.diagnostics import floor, memorisation, r2, time_loss

PATH = AffinePath(schedules.linear())
TIMES = torch.tensor([0.0, 0.1, 0.5, 0.9])


def normal(n: int, seed: int, d: int = 2) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_floor_of_one_gaussian() -> None:
    """Of N(m, s^2 I) it is s^2 / ((1 - t)^2 + t^2 s^2) a dimension.

    The mean of 80,000 squares of variance 2 f^2 has a relative standard error of 0.005: 3% is 6 sigma, p < 1e-8.
    """
    s, mean = 0.5, torch.tensor([2.0, 1.0], dtype=torch.float64)
    data = mean + s * normal(40_000, 0)
    exact = GaussianMixtureField(PATH, mean[None], torch.tensor([s**2]))
    found = time_loss(exact, PATH, data, TIMES, draws=40_000, generator=torch.Generator().manual_seed(1))
    t = TIMES.double()
    torch.testing.assert_close(found, s**2 / ((1 - t) ** 2 + (t * s) ** 2), rtol=0.03, atol=0)


def test_the_memoriser_s_floor_nears_the_law_s_from_below() -> None:
    """At t = 0.1, 200 rows are nearly as good as the law; at t = 0.97 the memoriser has almost no loss left."""
    s, times = 0.5, torch.tensor([0.1, 0.97])
    found = floor(PATH, s * normal(200, 0), times, draws=8000, generator=torch.Generator().manual_seed(1))
    law = s**2 / ((1 - times.double()) ** 2 + (times.double() * s) ** 2)
    assert float(found[0]) == pytest.approx(float(law[0]), rel=0.25)
    assert float(found[1]) < 0.7 * float(law[1])


def test_no_field_is_below_the_floor() -> None:
    """At the same draws the loss of any other field exceeds the floor by its distance to the exact one."""
    data = normal(64, 0)
    generator = torch.Generator().manual_seed(1)
    best = floor(PATH, data, TIMES, draws=4096, generator=generator)
    exact = EmpiricalField(PATH, data)
    off = time_loss(
        lambda x, t: exact(x, t) + 0.5, PATH, data, TIMES, draws=4096, generator=torch.Generator().manual_seed(1)
    )
    # The cross term has mean 0 and a standard error below 0.5 sqrt(2 f / 4096) <= 0.02 here: 0.12 is 6 sigma.
    assert bool((off - best - 0.25).abs().max() < 0.12)
    zero = time_loss(lambda x, t: 0 * x, PATH, data, TIMES, draws=4096, generator=torch.Generator().manual_seed(1))
    assert bool((zero > best).all())


def test_a_field_that_is_told_the_class_has_a_lower_floor() -> None:
    data = torch.cat([normal(50, 0) - 3, normal(50, 1) + 3])
    labels = torch.arange(100) // 50
    told, blind = (
        floor(PATH, data, TIMES[:2], labels=some, generator=torch.Generator().manual_seed(1)) for some in (labels, None)
    )
    assert bool((told < 0.5 * blind).all())


def test_r2_of_the_exact_field_of_a_constant_and_of_half() -> None:
    data = normal(100, 0) + 1.0
    exact = EmpiricalField(PATH, data)

    def score(field: object) -> Tensor:
        return r2(field, exact, PATH, data, TIMES, draws=1000, generator=torch.Generator().manual_seed(1))  # type: ignore[arg-type]

    torch.testing.assert_close(score(exact), torch.ones(4, dtype=torch.float64))
    assert bool((score(lambda x, t: 0 * x) < 0).all())

    def halfway(x: Tensor, t: Tensor) -> Tensor:
        u = exact(x, t)
        return (u + u.mean(0)) / 2

    torch.testing.assert_close(score(halfway), torch.full((4,), 0.75, dtype=torch.float64))


def test_conditions_go_with_their_rows() -> None:
    """Each row's condition is the row itself, so that a field can give the answer away."""
    data = normal(50, 0)

    def told(x: Tensor, t: Tensor, row: Tensor) -> Tensor:
        return (row - x) / (1 - t[:, None])

    loss = time_loss(told, PATH, data, TIMES, cond={"row": data}, draws=120)
    assert float(loss.max()) < 1e-20
    exact = EmpiricalField(PATH, data)
    worse = r2(told, exact, PATH, data, TIMES, cond={"row": data}, draws=120)
    best = r2(told, lambda x, t, own: told(x, t, own), PATH, data, TIMES, cond={"row": data}, exact_cond={"own": data})
    assert float(worse.max()) < 1
    torch.testing.assert_close(best, torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": torch.zeros(0, 2)}, "data must hold a row"),
        ({"draws": 0}, "draws be at least 1"),
        ({"times": torch.tensor([1.5])}, r"times must be one row of numbers in \[0, 1\]"),
        ({"times": torch.tensor(0.5)}, "times must be one row"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    given = {"field": lambda x, t: x, "path": PATH, "data": torch.zeros(3, 2), "times": TIMES} | change
    with pytest.raises(ValueError, match=message):
        time_loss(**given)  # type: ignore[arg-type]


def test_r2_needs_an_exact_field_that_varies() -> None:
    with pytest.raises(ValueError, match="exact must vary over the draws"):
        r2(lambda x, t: x, lambda x, t: 0 * x, PATH, torch.zeros(3, 2), TIMES)


def test_copies_are_found_and_fresh_rows_are_not() -> None:
    """Fresh samples: p is uniform, and 0.01 or less has probability 0.01; the seed is fixed."""
    train, held_out, fresh = normal(900, 0), normal(100, 1), normal(500, 2)
    generator = torch.Generator().manual_seed(0)
    copies = memorisation(train[:500] + 1e-3 * normal(500, 3), train, held_out, generator=generator)
    assert copies.verdict is True
    assert copies.share < 0.01
    honest = memorisation(fresh, train, held_out, generator=generator)
    assert honest.verdict is False
    assert honest.share == pytest.approx(0.1, abs=0.06)  # binomial over rows and samples, sigma 0.013
    assert honest.ratio_range[0] < honest.ratio < honest.ratio_range[1]
    assert copies.ratio < honest.ratio


def test_too_few_held_out_rows_give_no_verdict() -> None:
    found = memorisation(normal(50, 0), normal(60, 1), normal(2, 2), generator=torch.Generator().manual_seed(0))
    assert found.verdict is None


def test_the_unit_of_a_column_does_not_matter() -> None:
    rows = normal(300, 0), normal(300, 1), normal(50, 2)
    unit = torch.tensor([1e6, 1e-6], dtype=torch.float64)
    a, b = (memorisation(*(r * u for r in rows), generator=torch.Generator().manual_seed(0)) for u in (unit, 1.0))
    assert (a.share, a.p) == (b.share, b.p)
    assert a.ratio == pytest.approx(b.ratio)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((torch.zeros(1, 2), torch.zeros(5, 2), torch.zeros(5, 2)), "samples must be 2 or more"),
        ((torch.zeros(5, 2), torch.zeros(5, 3), torch.zeros(5, 2)), "train must be 2 or more"),
        ((torch.zeros(5, 2), torch.zeros(5, 2), torch.full((5, 2), torch.nan)), "held_out must be 2 or more"),
    ],
)
def test_memorisation_refuses(rows: tuple[Tensor, Tensor, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        memorisation(*rows)
