"""One verdict from samples, field and likelihood."""

import pytest
import torch
from torch import Tensor

from pathline import AffinePath, EmpiricalField, GaussianMixtureField, schedules
from pathline.diagnostics import Evidence, FieldGap, error_budget, field_gap, memorisation
from pathline.metrics import w2
from problems import normal, seeded

PATH = AffinePath(schedules.linear())
HONEST = GaussianMixtureField(PATH, torch.zeros(1, 2), torch.ones(1))


@pytest.mark.parametrize("rows", [50, 800])
def test_the_field_of_its_rows_is_told_from_the_field_of_the_law(rows: int) -> None:
    """p of an honest field is uniform: one of 6 below 0.001 has probability 0.006, and the seed is fixed."""
    train, held_out = normal(rows, 2, seed=0), normal(200, 2, seed=1)
    repeats = field_gap(EmpiricalField(PATH, train), PATH, train, held_out, generator=seeded(0))
    assert repeats.ratio < 0.5
    assert Evidence(field=repeats).verdict == "memorises"
    honest = field_gap(HONEST, PATH, train, held_out, generator=seeded(0))
    assert min(honest.p) > 0.001
    assert Evidence(field=honest).verdict == "no sign"


def test_conditions_go_with_their_rows() -> None:
    train, held_out = normal(60, 2, seed=0), normal(40, 2, seed=1)

    def field(x: Tensor, t: Tensor, /, row: Tensor) -> Tensor:
        return (row - x) / (1 - t[:, None])

    cond = {"train_cond": {"row": train}, "held_out_cond": {"row": held_out}}
    right = field_gap(field, PATH, train, held_out, **cond, generator=seeded(0))
    cond = {"train_cond": {"row": train}, "held_out_cond": {"row": held_out + 1}}
    wrong = field_gap(field, PATH, train, held_out, **cond, generator=seeded(0))
    assert right.ratio > 0.5
    assert wrong.ratio < 0.01


def test_closed_form_fields_are_told_the_labels() -> None:
    """With as many rows of each kind as are compared, the field of the training rows is at no distance from itself."""
    labels = torch.arange(60) % 2
    train, held_out = (normal(60, 2, seed=seed) + 2 * labels[:, None] for seed in (0, 1))
    told, cond = EmpiricalField(PATH, train, labels=labels), {"label": labels}

    def gap(some: Tensor | None) -> FieldGap:
        both = {"train_cond": cond, "held_out_cond": cond, "train_labels": some, "held_out_labels": some}
        return field_gap(told, PATH, train, held_out, **both, generator=seeded(0))

    assert min(gap(None).train[:3]) > 0.01
    assert max(gap(labels).train) < 1e-20
    assert min(gap(labels).held_out) > 0.01


def test_bootstraps_are_found_from_samples_alone() -> None:
    train, held_out = normal(900, 2, seed=0), normal(100, 2, seed=1)
    pick = torch.randint(900, (500,), generator=seeded(2))
    copies = train[pick] + 1e-3 * normal(500, 2, seed=3)
    found = Evidence(samples=memorisation(copies, train, held_out, generator=seeded(4)))
    assert found.verdict == "memorises"
    fresh = memorisation(normal(500, 2, seed=5), train, held_out, generator=seeded(4))
    assert Evidence(samples=fresh).verdict == "no sign"


def test_likelihood_alone_is_overfitting() -> None:
    found = Evidence(train_log_prob=-1.0, held_out_log_prob=-2.0, log_prob_se=0.1)
    assert found.verdict == "overfits"
    assert Evidence(train_log_prob=-1.0, held_out_log_prob=-1.1, log_prob_se=0.1).verdict == "no sign"
    assert Evidence().verdict == "cannot tell"
    assert "log-likelihood -1 on training rows, -2 on held-out ones (se 0.1)" in str(found)


def test_the_line_names_its_evidence() -> None:
    gap = FieldGap((0.5, 0.9), (0.2, 0.1), (0.2, 0.5), (0.4, 1e-9))
    assert (gap.widest, gap.ratio) == (1, 0.2)
    line = str(Evidence(field=gap))
    assert line.startswith("memorisation: memorises; field at t = 0.9 is 0.1 from")
    assert "\n" not in line


def test_field_gap_refuses() -> None:
    with pytest.raises(ValueError, match="train and held_out must have 2 rows or more, got 5 and 1"):
        field_gap(HONEST, PATH, normal(5, 2, seed=0), normal(1, 2, seed=0))


def test_the_budget_adds_up_and_names_the_guilty() -> None:
    real, fresh, best = (normal(400, 2, seed=seed) for seed in (0, 1, 2))
    network = error_budget(best + 1.0, best + 1.0, real, fresh)
    assert network.solver.value == 0
    assert network.network.value > 10 * (network.network.se or 0)
    solver = error_budget(best + 1.0, best, real, fresh)
    assert solver.solver.value > 10 * (solver.solver.se or 0)
    assert abs(solver.network.value) < 0.15  # two samples of 400 are about 0.2 apart, within a few hundredths
    for found in (network, solver):
        parts = found.sample.value + found.network.value + found.solver.value
        assert parts == pytest.approx(found.total.value)
        assert found.total.value == pytest.approx(w2(best + 1.0, real))
        assert found.sample.value == pytest.approx(w2(fresh, real))
    assert error_budget(*(normal(20, 20, seed=s) for s in range(4))).name == "sliced_w2"
    assert error_budget(*(normal(9, 2, seed=s) for s in range(4))).total.se is None
    with pytest.raises(ValueError, match="all four sets must have equally many rows, got 400, 400, 399, 400"):
        error_budget(best, best, real[:-1], fresh)
