import itertools

import pytest
import torch
from torch import Tensor, nn

from pathline import schedules
from pathline.fields import EmpiricalField, GaussianMixtureField, ParametrizedField, own_starts, reschedule
from pathline.fields.guidance import classifier_free
from pathline.grids import uniform
from pathline.paths import AffinePath
from pathline.schedules import Schedule
from pathline.solvers import Dopri5, abm, euler, grid_for, heun, rk4, solve
from pathline.sources import Points
from problems import SCHEDULES, Answers, annulus, close, every_schedule, every_shape, normal, number, seeded

LINEAR = SCHEDULES["linear"]
SHIPPED = {name: schedule for name, schedule in SCHEDULES.items() if name != "custom"}
SQRT = schedules.custom(torch.sqrt, lambda t: 1 - t)
PAIRS = {
    **{f"{a}-{b}": (SHIPPED[a], SHIPPED[b]) for a, b in itertools.product(SHIPPED, repeat=2)},
    "custom-linear": (SCHEDULES["custom"], LINEAR),
    "linear-custom": (LINEAR, SCHEDULES["custom"]),
    "sqrt-cosine": (SQRT, SCHEDULES["cosine"]),
    "linear-sqrt": (LINEAR, SQRT),
}
every_pair = pytest.mark.parametrize(("old", "new"), list(PAIRS.values()), ids=list(PAIRS))


def mixture(schedule: Schedule) -> GaussianMixtureField:
    return GaussianMixtureField(AffinePath(schedule), normal(3, 2, seed=0), torch.tensor([0.5, 0.7, 0.9]))


def last_shared(old: Schedule, new: Schedule) -> float:
    ends = [float(s(number(1.0)).alpha / s(number(1.0)).sigma) for s in (old, new)]
    if ends[0] >= ends[1]:
        return 1.0
    return float(new.time_of_log_snr(old.log_snr(number(1.0))))


@every_pair
def test_is_the_exact_field_of_the_other_path(old: Schedule, new: Schedule):
    moved, exact, most = reschedule(mixture(old), AffinePath(old), new), mixture(new), last_shared(old, new)
    x = normal(5, 2, seed=1)
    for share in (1e-4, 0.01, 0.3, 0.6, 0.99, 0.9999):
        t = number(share * most)
        close(moved(x, t.expand(5)), exact(x, t), 1e-7)
        close(moved.posterior_mean(x, t.expand(5)), exact.posterior_mean(x, t), 1e-7)
    times = torch.rand(5, generator=seeded(2), dtype=torch.float64) * most
    close(moved(x, times), exact(x, times), 1e-8)


@every_pair
def test_right_or_refused_at_both_ends(old: Schedule, new: Schedule):
    exact, most, x = mixture(new), last_shared(old, new), normal(5, 2, seed=1)
    moved = reschedule(mixture(old), AffinePath(old), new)
    assert moved.most == pytest.approx(most, abs=1e-12)
    for end in (0.0, 1.0):
        if end in moved.open_ends:
            with pytest.raises(ValueError, match=f"t must not be {end:g}"):
                moved(x, number(end).expand(5))
        elif end > most:
            with pytest.raises(ValueError, match=rf"t must lie in \[0, {most:.6g}\], where the .* got 1"):
                moved(x, number(end).expand(5))
        else:
            close(moved(x, number(end).expand(5)), exact(x, number(end)), 1e-7)


def test_ends_are_refused_only_where_the_velocities_say_nothing():
    refused = {}
    for (a, old), (b, new) in itertools.product(SCHEDULES.items(), repeat=2):
        moved = reschedule(mixture(old), AffinePath(old), new)
        refused[a, b] = (0.0 in moved.open_ends, 1.0 in moved.open_ends)
    silent = {"polynomial-1.5", "polynomial-2", "custom"}  # their velocity is 0 at t = 0 whatever the data
    for (a, b), (start, end) in refused.items():
        assert start == (a in silent and b not in silent), (a, b)
        assert end == ("vp" in (a, b) and "linear-0.2" not in (a, b)), (a, b)


@every_schedule
def test_a_gaussian_moved_off_the_variance_preserving_schedule_keeps_its_width(schedule: Schedule):
    path, x = AffinePath(SCHEDULES["vp"]), normal(20, 2, seed=3)
    moved = reschedule(GaussianMixtureField(path, torch.ones(1, 2), torch.full((1,), 0.1)), path, schedule)
    if moved.most == 1:
        width = (0.1 + schedule(number(1.0)).sigma ** 2).sqrt()
        close(solve(moved, x, uniform(32)).x, 1 + width * x, 5e-4)


@every_pair
def test_points_end_where_the_other_field_ends(old: Schedule, new: Schedule):
    field, exact = (EmpiricalField(AffinePath(s), annulus(5)) for s in (old, new))
    moved, most = reschedule(field, field.path, AffinePath(new)), last_shared(old, new)
    x, last = normal(6, 2, seed=3), most if most < 1 else 1.0
    grid = uniform(8, 0.05, last)
    close(solve(moved, x, grid, heun).x, solve(exact, x, grid, heun).x, 1e-6)


def test_a_solve_of_a_silent_start_keeps_x_there():
    old, new = SCHEDULES["polynomial-2"], SCHEDULES["linear"]
    moved, x = reschedule(mixture(old), AffinePath(old), new), normal(6, 2, seed=3)
    close(solve(moved, x, uniform(64)).x, solve(mixture(new), x, uniform(64)).x, 3e-3)


def test_a_network_moves_with_its_parameters_dtype_and_shape():
    exact = EmpiricalField(AffinePath(SCHEDULES["linear"]), normal(4, 2, 3, seed=0).float())
    net = ParametrizedField(Answers(exact, "data"), exact.path, "data")
    moved = reschedule(net, exact.path, SCHEDULES["cosine"])
    assert moved.open_ends.keys() == {1.0}
    x = normal(5, 2, 3, seed=1).float()
    value = moved(x, torch.full((), 0.3).expand(5))
    assert value.dtype == torch.float32
    wanted = EmpiricalField(AffinePath(SCHEDULES["cosine"]), exact.points)
    torch.testing.assert_close(value, wanted(x, torch.tensor(0.3)), rtol=1e-4, atol=1e-5)
    closed = solve(moved, x, uniform(8))
    assert closed.closed
    assert closed.nfe == 8 * 4 + 1


def test_a_moved_field_compiles_to_one_graph():
    field = reschedule(lambda x, t: -x, AffinePath(LINEAR), SCHEDULES["cosine"])

    def call(x: Tensor) -> Tensor:
        return field(x, torch.full((), 0.3).expand(len(x)))

    x = normal(3, 2, seed=0).float()
    close(torch.compile(call, fullgraph=True, backend="eager")(x), call(x), 1e-6)


def test_refuses_another_source():
    path = AffinePath(SCHEDULES["linear"])
    other = AffinePath(SCHEDULES["cosine"], Points(torch.zeros(3, 2)))
    with pytest.raises(ValueError, match="to must start from the source of path"):
        reschedule(mixture(path.schedule), path, other)


@every_shape
def test_every_row_starts_at_its_own_time(shape: tuple[int, ...]):
    field = EmpiricalField(AffinePath(SCHEDULES["linear-0.2"]), normal(4, *shape, seed=0))
    x, t0 = normal(3, *shape, seed=1), torch.tensor([0.0, 0.4, 0.9], dtype=torch.float64)
    together = solve(own_starts(field, t0), x, uniform(32), abm).x
    for i, start in enumerate(t0.tolist()):
        close(together[i : i + 1], solve(field, x[i : i + 1], uniform(32, start), abm).x, 1e-12)


def test_rows_with_their_own_starts_close_like_others():
    field = EmpiricalField(AffinePath(SCHEDULES["linear"]), annulus(5))
    t0 = torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64)
    solution = solve(own_starts(field, t0), normal(3, 2, seed=1), uniform(40), euler)
    assert solution.closed
    assert solution.nfe == 40
    net = ParametrizedField(Answers(field, "data"), field.path, "data")
    assert solve(own_starts(net, t0), normal(3, 2, seed=1), uniform(40), rk4).x.isfinite().all()


@pytest.mark.parametrize(("interval", "nfe"), [((0.0, 1.0), 8), ((0.4, 0.9), 8)])
def test_own_starts_count_the_calls_of_their_field(interval: tuple[float, float], nfe: int):
    count = 0

    class Counted(nn.Module):
        def forward(self, x: Tensor, t: Tensor, /) -> Tensor:
            nonlocal count
            count += 1
            return -x

    guided = classifier_free(Counted(), 2.0, interval=interval)
    for t0 in (torch.zeros(1), torch.tensor([0.0, 0.5])):
        count = 0
        field = own_starts(guided, t0)
        assert solve(field, torch.ones(len(t0), 2), uniform(4), euler).nfe == count > 4
        assert solve(field, torch.ones(len(t0), 2), grid_for(nfe, euler, field), euler).nfe == nfe


def test_refuses_other_rows_clocks_and_schedules():
    path = AffinePath(SCHEDULES["linear"])
    field = own_starts(lambda x, t: -x, torch.zeros(2))
    with pytest.raises(ValueError, match="x must have one row for each of the 2 times in t0, got 3"):
        solve(field, torch.ones(3, 2), uniform(2), euler)
    with pytest.raises(ValueError, match="field must tell the path's time to be rescheduled"):
        reschedule(field, path, SCHEDULES["cosine"])
    with pytest.raises(ValueError, match=r"to must be a schedule, such as schedules.cosine\(\), .* got 'cosine'"):
        reschedule(lambda x, t: -x, path, "cosine")  # pyright: ignore


@pytest.mark.parametrize(
    ("t0", "message"),
    [
        (torch.tensor(0.5), "t0 must be times in"),
        (torch.tensor([0.5, 1.0]), r"t0 must be times in \[0, 1\) of shape \(b,\), got shape \(2,\) in \[0.5, 1\]"),
        (torch.tensor([-0.1]), "t0 must be times"),
    ],
)
def test_refuses_bad_starts(t0: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        own_starts(lambda x, t: x, t0)


def test_refuses_starts_beyond_an_open_end():
    exact = EmpiricalField(AffinePath(SCHEDULES["linear"]), annulus(5))
    noise = ParametrizedField(Answers(exact, "noise"), exact.path, "noise")
    with pytest.raises(ValueError, match=r"t0 must lie in \[0.000999001, 1\), where this field has a value"):
        own_starts(noise, torch.tensor([0.0, 0.5]))


@pytest.mark.parametrize("last", [0.9, None])
def test_dopri5_stops_where_it_is_told_before_an_open_end(last: float | None):
    field = EmpiricalField(AffinePath(SCHEDULES["linear"]), annulus(5))
    solution = solve(field, normal(4, 2, seed=0), uniform(1), Dopri5(last=last))
    assert solution.times.tolist() == [0.0, last or 0.999, 1.0]
    assert solution.closed
