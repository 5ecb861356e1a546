import math
from dataclasses import dataclass
from itertools import permutations
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from pathline import schedules
from pathline.paths import AffinePath, BridgePath, GaussianPath, Prediction, convert
from pathline.schedules import Schedule
from pathline.sources import Points, StandardNormal
from pathline.typing import Batch
from problems import (
    DTYPES,
    SCHEDULES,
    SHAPES,
    as_gaussian,
    close,
    columns,
    curved_path,
    every_dtype,
    every_schedule,
    every_shape,
    normal,
    number,
    rounding,
    seeded,
)

Path = AffinePath | GaussianPath | BridgePath

BRIDGES = {
    "brownian": BridgePath(StandardNormal(), 0.5),
    "bridge": BridgePath(StandardNormal(), lambda t: 0.1 + t * (1 - t)),
}
PATHS: dict[str, Path] = {
    **{name: AffinePath(schedule) for name, schedule in SCHEDULES.items()},
    "gaussian": curved_path(),
    **BRIDGES,
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


@dataclass(frozen=True)
class Shifted:
    """N(3, 2^2 I)."""

    def sample(self, shape, generator=None, dtype=None, device=None) -> Tensor:
        return 3 + 2 * torch.randn(shape, generator=generator, dtype=dtype, device=device)

    def log_prob(self, x: Tensor) -> Tensor:
        return Normal(number(3.0), number(2.0)).log_prob(x).reshape(len(x), -1).sum(1)


def ends(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, n: int = 5) -> tuple[Tensor, Tensor]:
    return normal(n, *shape, seed=1, dtype=dtype), 2 * normal(n, *shape, seed=2, dtype=dtype)


def some_times(path: Path, dtype: torch.dtype = torch.float64) -> Tensor:
    """Five times, 0 and 1 among them unless the path is open there."""
    t = torch.tensor([0.0, 0.3, 0.5, 0.9, 1.0], dtype=dtype)
    for end in path.open_ends:
        t[t == end] = 0.6
    return t


@every_dtype
@every_shape
@every_schedule
def test_affine_sample_is_the_interpolant(schedule: Schedule, shape: tuple[int, ...], dtype: torch.dtype):
    path, (x0, x1) = AffinePath(schedule), ends(shape, dtype)
    t = some_times(path, dtype)
    sample, curve = path.sample(Batch(x1, x0=x0), t), schedule(t)
    close(sample.x_t, columns(curve.alpha, x1) * x1 + columns(curve.sigma, x1) * x0, rounding(dtype))
    close(sample.target, columns(curve.alpha_rate, x1) * x1 + columns(curve.sigma_rate, x1) * x0, rounding(dtype))
    close(path.velocity_from_noise(x0, x1, t), sample.target, 0.0)
    assert sample.x0 is x0
    assert sample.x1 is x1
    assert torch.equal(sample.t, t)


@every_dtype
@every_shape
def test_gaussian_sample_has_the_moments_that_were_given(shape: tuple[int, ...], dtype: torch.dtype):
    path, (x0, x1) = curved_path(), ends(shape, dtype)
    t = some_times(path, dtype)
    sample, s = path.sample(Batch(x1, x0=x0), t), columns(t, x1)
    last = columns(0.2 + 0.1 * x1.reshape(5, -1).mean(1).tanh(), x1)
    close(sample.x_t, s * x1 + s * (1 - s) * x1.tanh() + (1 - s + s**2 * last) * x0, rounding(dtype))
    close(sample.target, x1 + (1 - 2 * s) * x1.tanh() + (2 * s * last - 1) * x0, rounding(dtype))


@every_dtype
@every_shape
@pytest.mark.parametrize("name", BRIDGES)
def test_bridge_sample_has_its_moments(name: str, shape: tuple[int, ...], dtype: torch.dtype):
    path, (x0, x1) = BRIDGES[name], ends(shape, dtype)
    t = some_times(path, dtype)
    sample, s = path.sample(Batch(x1, x0=x0), t, seeded(3)), columns(t, x1)
    noise = torch.randn(x1.shape, generator=seeded(3), dtype=dtype)
    if name == "brownian":
        std, rate = 0.5 * (s * (1 - s)).sqrt(), 0.5 * (1 - 2 * s) / (2 * (s * (1 - s)).sqrt())
    else:
        std, rate = 0.1 + s * (1 - s), 1 - 2 * s
    close(sample.x_t, (1 - s) * x0 + s * x1 + std * noise, rounding(dtype))
    close(sample.target, x1 - x0 + rate * noise, rounding(dtype))


@pytest.mark.parametrize("path", [AffinePath(schedules.linear()), curved_path(), *BRIDGES.values()])
def test_fresh_source_points_come_from_the_generator(path: Path):
    x1, t = torch.zeros(4, 2), torch.full((4,), 0.5)
    first, again, other = (path.sample(Batch(x1), t, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.x_t, again.x_t)
    assert not torch.equal(first.x0, other.x0)


@every_dtype
@every_shape
@every_path
def test_one_time_is_the_same_however_it_is_shaped(path: Path, shape: tuple[int, ...], dtype: torch.dtype):
    x0, x1 = ends(shape, dtype)
    t = torch.tensor(0.37, dtype=dtype)
    for call in (
        lambda s: path.sample(Batch(x1, x0=x0), s, seeded(3)).x_t,
        lambda s: path.sample(Batch(x1, x0=x0), s, seeded(3)).target,
        lambda s: path.velocity(x1 + 1, x1, s, x0),
        lambda s: path.score(x1 + 1, x1, s, x0),
        lambda s: path.log_prob(x1 + 1, x1, s, x0),
    ):
        close(call(t.expand(5)), call(t), 1e-6 if dtype == torch.float32 else 1e-14)
        close(call(t.repeat(5)), call(t), 1e-6 if dtype == torch.float32 else 1e-14)


@every_path
def test_times_belong_to_rows_even_where_rows_and_columns_are_as_many(path: Path):
    x0, x1 = ends((5,))
    x, t = normal(5, 5, seed=3), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)

    def everything(rows: slice, t: Tensor) -> list[Tensor]:
        a, b, y = x0[rows], x1[rows], x[rows]
        found = [
            path.velocity(y, b, t, a),
            path.velocity_from_noise(y, b, t, a),
            path.score(y, b, t, a),
            path.log_prob(y, b, t, a),
        ]
        if isinstance(path, AffinePath):
            found += [convert(y, b, t, path, given, wanted) for given, wanted in permutations(PREDICTIONS, 2)]
        if not isinstance(path, BridgePath):
            found += path.sample(Batch(b, x0=a), t)[:2]
        return found

    whole = everything(slice(None), t)
    for i in range(5):
        for value, row in zip(whole, everything(slice(i, i + 1), t[i]), strict=True):
            close(value[i : i + 1], row, 1e-13)


@every_dtype
@every_shape
@every_path
def test_velocity_through_x_is_the_velocity_of_the_sample(path: Path, shape: tuple[int, ...], dtype: torch.dtype):
    x0, x1 = ends(shape, dtype)
    t = torch.tensor([0.02, 0.3, 0.5, 0.9, 0.99], dtype=dtype)
    sample = path.sample(Batch(x1, x0=x0), t, seeded(3))
    close(path.velocity(sample.x_t, x1, t, x0), sample.target, 100 * rounding(dtype))


@every_schedule
def test_what_divides_by_std_is_refused_where_it_is_zero(schedule: Schedule):
    path, (x0, x1) = AffinePath(schedule), ends((2,))
    for t in (number(1.0), torch.linspace(0, 1, 5, dtype=torch.float64)):
        for function in (path.velocity, path.score, path.log_prob):
            if schedule.name == "linear" and schedule.options["sigma_min"]:
                assert function(x0, x1, t).isfinite().all()
            else:
                with pytest.raises(ValueError, match=r"has no value at t = 1, where std is 0|t must not be 1"):
                    function(x0, x1, t)


def test_velocities_of_the_variance_preserving_path_are_refused_at_its_end():
    path, (x0, x1) = AffinePath(SCHEDULES["vp"]), ends((2,))
    for refused in (
        lambda: path.sample(Batch(x1, x0=x0), torch.linspace(0, 1, 5)),
        lambda: path.velocity_from_noise(x0, x1, torch.tensor(1.0)),
    ):
        with pytest.raises(ValueError, match="t must not be 1: the velocity of this path has no value there"):
            refused()


@every_dtype
@every_shape
@every_path
def test_log_prob_and_score_are_those_of_a_normal_law(path: Path, shape: tuple[int, ...], dtype: torch.dtype):
    x0, x1 = ends(shape, dtype)
    t = torch.tensor([0.01, 0.3, 0.5, 0.7, 0.9], dtype=dtype)
    x = normal(5, *shape, seed=3, dtype=dtype).requires_grad_(True)
    at = path.moments(x1, t, x0)
    law = Independent(Normal(at.mean, at.std.expand_as(x)), len(shape))
    log_prob = path.log_prob(x, x1, t, x0)
    close(log_prob, law.log_prob(x), rounding(dtype))
    close(path.score(x, x1, t, x0), torch.autograd.grad(log_prob.sum(), x)[0], rounding(dtype))


@every_dtype
@every_shape
@every_schedule
def test_an_affine_path_can_be_written_as_a_gaussian_one(
    schedule: Schedule, shape: tuple[int, ...], dtype: torch.dtype
):
    affine, gaussian, (x0, x1) = AffinePath(schedule), as_gaussian(schedule), ends(shape, dtype)
    times = some_times(affine, dtype)
    for t in (times, times[0], times[-1]):
        for value, expected in zip(gaussian.moments(x1, t), affine.moments(x1, t), strict=True):
            close(value.expand(x1.shape), expected.expand(x1.shape), 10 * rounding(dtype))
        for given, expected in zip(
            gaussian.sample(Batch(x1, x0=x0), t), affine.sample(Batch(x1, x0=x0), t), strict=True
        ):
            close(given, expected, 10 * rounding(dtype))


@every_dtype
def test_moments_may_differ_by_case(dtype: torch.dtype):
    path = GaussianPath(
        lambda x1, t: torch.where(x1 > 0, t * x1, t**2 * x1),
        lambda x1, t: torch.where(x1[:, 0] > 0, 1 - 0.5 * t, 1 - 0.5 * t**2),
    )
    x1, t = torch.tensor([[1.0], [-1.0]], dtype=dtype), torch.tensor([0.5, 0.5], dtype=dtype)
    for time in (t, t[0]):
        at = path.moments(x1, time)
        assert at.mean.tolist() == [[0.5], [-0.25]]
        assert at.std.tolist() == [[0.75], [0.875]]
        assert at.mean_rate.tolist() == [[1.0], [-1.0]]
        assert at.std_rate.tolist() == [[-0.5], [-0.5]]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (GaussianPath(lambda x1, t: t * x1 + 1, lambda x1, t: 1 - t), "mean and std must be 0 and 1 at t = 0"),
        (GaussianPath(lambda x1, t: t * x1, lambda x1, t: 2 - t), "mean and std must be 0 and 1 at t = 0"),
        (GaussianPath(lambda x1, t: t * x1.sum(1), lambda x1, t: 1 - t), r"mean\(x1, t\) must be shaped like x1"),
        (GaussianPath(lambda x1, t: t * x1, lambda x1, t: (1 - t) * x1), r"std\(x1, t\) must have shape"),
        (
            GaussianPath(lambda x1, t: 3 + t * x1, lambda x1, t: (2 - t) * x1, source=Shifted()),
            r"std\(x1, t\) must have shape",
        ),
        (GaussianPath(lambda x1, t: t * x1, lambda x1, t: (1 - t**2).sqrt()), r"rate of std must be finite.*\[0, 1\]"),
    ],
)
@pytest.mark.parametrize("scalar", [False, True])
def test_a_wrong_gaussian_path_is_refused_at_first_use(path: GaussianPath, message: str, scalar: bool):
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match=message.replace(r"\[0, 1\]", r"\[1, 1\]") if scalar else message):
        path.sample(Batch(normal(5, 2, seed=0)), t[-1] if scalar else t)


def test_a_gaussian_path_may_start_from_another_source():
    path = GaussianPath(lambda x1, t: 3 + t * (x1 - 3), lambda x1, t: 2 - 1.9 * t, source=Shifted())
    x1, t = normal(4, 2, seed=0), torch.tensor([0.0, 0.2, 0.6, 1.0], dtype=torch.float64)
    sample, s = path.sample(Batch(x1), t, seeded(1)), t[:, None]
    x0 = 3 + 2 * normal(4, 2, seed=1)
    assert torch.equal(sample.x0, x0)
    close(sample.x_t, 3 + s * (x1 - 3) + (2 - 1.9 * s) * (x0 - 3) / 2, 1e-14)
    close(sample.x_t[0], x0[0], 1e-14)
    close(path.log_prob(x0, x1, number(0.0)), Shifted().log_prob(x0), 1e-14)


def test_source_points_become_noise_only_where_the_start_has_spread():
    path = GaussianPath(lambda x1, t: t * x1, lambda x1, t: t * (1 - t), source=Shifted())
    with pytest.raises(ValueError, match="std must be positive at t = 0"):
        path.sample(Batch(normal(4, 2, seed=0)), number(0.5))


@pytest.mark.parametrize("source", [Points(torch.zeros(3, 2, dtype=torch.float64)), Shifted()])
def test_an_affine_path_from_another_source_has_velocities_but_no_gaussian_density(source):
    path, (x0, x1) = AffinePath(schedules.linear(), source), ends((2,))
    sample = path.sample(Batch(x1), number(0.5), seeded(0))
    close(path.velocity(sample.x_t, x1, number(0.5)), x1 - sample.x0, 1e-13)
    for refused in (path.score, path.log_prob):
        with pytest.raises(ValueError, match="source must be a standard normal"):
            refused(x0, x1, number(0.5))


def test_a_brownian_bridge_has_no_velocity_at_its_ends():
    path, (x0, x1) = BRIDGES["brownian"], ends((2,))
    for end in (0.0, 1.0):
        for refused in (
            lambda t: path.sample(Batch(x1, x0=x0), t),
            lambda t: path.velocity(x1, x1, t, x0),
            lambda t: path.score(x1, x1, t, x0),
        ):
            with pytest.raises(ValueError, match=f"t must not be {end:g}"):
                refused(number(end))


def test_a_bridge_finds_the_ends_with_infinite_rates():
    path, (x0, x1) = BridgePath(StandardNormal(), lambda t: (t * (1 - t)).sqrt()), ends((2,))
    with pytest.raises(ValueError, match="rate of std must be finite"):
        path.sample(Batch(x1, x0=x0), number(1.0))


def test_a_bridge_needs_both_of_its_ends():
    x0, x1 = ends((2,))
    for function in (BRIDGES["bridge"].velocity, BRIDGES["bridge"].score, BRIDGES["bridge"].log_prob):
        with pytest.raises(ValueError, match="x0 is needed"):
            function(x0, x1, number(0.5))


@every_path
def test_shapes_are_checked(path: Path):
    x0, x1 = ends((2,))
    with pytest.raises(ValueError, match=r"t must have shape \(\) or \(5,\), got \(3,\)"):
        path.sample(Batch(x1, x0=x0), torch.full((3,), 0.5))
    with pytest.raises(ValueError, match=r"t must have shape \(\) or \(5,\), got \(5, 1\)"):
        path.velocity(x1, x1, torch.full((5, 1), 0.5), x0)
    with pytest.raises(ValueError, match=r"x0 must have the shape of x1 \(5, 2\), got \(4, 2\)"):
        path.sample(Batch(x1, x0=x0[:4]), number(0.5))


@pytest.mark.parametrize("scalar", [True, False])
@every_path
def test_bfloat16_states_keep_fine_times(path: Path, scalar: bool):
    x0, x1 = ends((2,), torch.bfloat16)
    t = torch.tensor(0.1237) if scalar else torch.tensor([0.1237, 0.3333, 0.501, 0.777, 0.9991])
    sample = path.sample(Batch(x1, x0=x0), t, seeded(0))
    assert torch.equal(sample.t, t.expand(5))
    assert sample.x_t.dtype == sample.target.dtype == torch.bfloat16
    fine = path.sample(Batch(x1.double(), x0=x0.double()), t.double(), seeded(0))
    if not isinstance(path, BridgePath):  # whose noise is drawn anew in each dtype
        torch.testing.assert_close(sample.x_t.double(), fine.x_t, rtol=0.02, atol=0.02)


def consistent(path: AffinePath, t: Tensor) -> tuple[Tensor, dict[Prediction, Tensor]]:
    x0, x1 = ends((2, 2), n=len(t))
    sample, sigma = path.sample(Batch(x1, x0=x0), t), columns(path.schedule(t).sigma, x1)
    return sample.x_t, {"velocity": sample.target, "data": x1, "noise": x0, "score": -x0 / sigma}


@every_schedule
def test_any_prediction_gives_the_others(schedule: Schedule):
    path, t = AffinePath(schedule), torch.tensor([0.02, 0.3, 0.5, 0.8, 0.98], dtype=torch.float64)
    x, values = consistent(path, t)
    for given in PREDICTIONS:
        for wanted in PREDICTIONS:
            found = convert(values[given], x, t, path, given, wanted)
            torch.testing.assert_close(found, values[wanted], rtol=1e-9, atol=1e-9)
            back = convert(found, x, t, path, wanted, given)
            torch.testing.assert_close(back, values[given], rtol=1e-9, atol=1e-9)


def determined(schedule: Schedule, end: float, given: Prediction, wanted: Prediction) -> bool:
    curve = schedule(number(end))
    if given == wanted:
        return True
    if end in schedule.open_ends and "velocity" in (given, wanted):
        return False
    has_noise, has_data = bool(curve.sigma > 0), bool(curve.alpha > 0)
    if given == "velocity":
        moves = bool(curve.alpha_rate * curve.sigma != curve.alpha * curve.sigma_rate)
        return moves and (has_noise or wanted != "score")
    if given == "data":
        return has_noise
    needs_data = wanted in ("velocity", "data")
    return (has_noise or "score" not in (given, wanted)) and (has_data or not needs_data)


@pytest.mark.parametrize("end", [0.0, 1.0])
@every_schedule
def test_conversions_at_the_ends_are_right_or_refused(schedule: Schedule, end: float):
    path, (x0, x1) = AffinePath(schedule), ends((2,))
    t, curve = number(end), schedule(number(end))
    values: dict[Prediction, Tensor] = {
        "velocity": curve.alpha_rate * x1 + curve.sigma_rate * x0,
        "data": x1,
        "noise": x0,
        "score": -x0 / curve.sigma,
    }
    x = curve.alpha * x1 + curve.sigma * x0
    refused = 0
    for given in PREDICTIONS:
        for wanted in PREDICTIONS:
            for time in (t, torch.where(torch.arange(5) == 3, t, 0.5)):
                if determined(schedule, end, given, wanted):
                    found = convert(values[given], x, time, path, given, wanted)
                    rows = slice(None) if time.ndim == 0 else slice(3, 4)
                    close(found[rows], values[wanted][rows], 1e-12)
                else:
                    refused += 1
                    with pytest.raises(ValueError, match=f"{given} does not determine {wanted} at t = {end:g}"):
                        convert(values[given], x, time, path, given, wanted)
    assert refused or (end == 1.0 and schedule(number(1.0)).sigma > 0)


def test_conversions_check_their_arguments():
    path, x = AffinePath(schedules.linear()), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="given must be one of velocity, data, noise, score, got 'eps'"):
        convert(x, x, torch.tensor(0.5), path, "eps", "data")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="wanted must be one of velocity, data, noise, score, got 'eps'"):
        convert(x, x, torch.tensor(0.5), path, "data", "eps")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"t must have shape \(\) or \(2,\)"):
        convert(x, x, torch.zeros(3), path, "data", "noise")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_standard_normal_source(shape: tuple[int, ...], dtype: torch.dtype):
    x = StandardNormal().sample((7, *shape), seeded(0), dtype)
    assert torch.equal(x, torch.randn((7, *shape), generator=seeded(0), dtype=dtype))
    close(StandardNormal().log_prob(x), Normal(0.0, 1.0).log_prob(x).reshape(7, -1).sum(1), rounding(dtype))


def test_points_source_draws_rows():
    source = Points(torch.arange(6.0).reshape(3, 2))
    x = source.sample((1000, 2), seeded(0))
    assert {tuple(row) for row in x.tolist()} == {(0, 1), (2, 3), (4, 5)}
    # each row is binomial(1000, 1/3) with SD 14.9; 90 is 6 SDs, error probability below 1e-8
    assert all(abs(int((x[:, 0] == first).sum()) - 1000 / 3) < 90 for first in (0, 2, 4))
    assert source.sample((2, 2), seeded(0), torch.float64).dtype == torch.float64
    with pytest.raises(ValueError, match=r"shape must end in the rows' shape \(2,\), got \(5, 3\)"):
        source.sample((5, 3))
    with pytest.raises(ValueError, match="no density"):
        source.log_prob(x)
    assert math.isclose(float(x.max()), 5.0)
