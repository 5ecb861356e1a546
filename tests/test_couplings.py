import pytest
import torch

from pathline import couplings
from pathline.sources import Points, StandardNormal
from problems import every_dtype, every_shape, normal, seeded

ROWS = torch.tensor([3, 0, 4, 1, 2, 2])


@every_dtype
@every_shape
def test_independent_uses_every_row_with_a_fresh_point(shape: tuple[int, ...], dtype: torch.dtype):
    coupling = couplings.independent(normal(5, *shape, seed=0, dtype=dtype), StandardNormal())
    pairs = coupling.draw(ROWS, seeded(1))
    assert torch.equal(pairs.index, ROWS)
    assert torch.equal(pairs.x0, torch.randn((6, *shape), generator=seeded(1), dtype=dtype))
    assert pairs.weight is None


@every_dtype
@every_shape
def test_paired_keeps_each_point_with_its_row(shape: tuple[int, ...], dtype: torch.dtype):
    data, points = normal(5, *shape, seed=0, dtype=dtype), normal(5, *shape, seed=1)
    pairs = couplings.paired(data, Points(points)).draw(ROWS)
    assert torch.equal(pairs.index, ROWS)
    assert torch.equal(pairs.x0, points[ROWS].to(dtype))
    assert pairs.x0.dtype == dtype


def test_a_source_of_points_is_drawn_afresh_by_the_independent_coupling():
    points = torch.arange(4.0)[:, None]
    x0 = couplings.independent(torch.zeros(400, 1), Points(points)).draw(torch.arange(400), seeded(0)).x0
    # each of four values is missed with probability 0.75^400 = 1e-50
    assert set(x0[:, 0].tolist()) == {0.0, 1.0, 2.0, 3.0}


def test_paired_needs_one_point_a_row():
    with pytest.raises(ValueError, match=r"source must be sources\.Points to be paired row by row, got StandardNormal"):
        couplings.paired(torch.zeros(3, 2), StandardNormal())
    with pytest.raises(ValueError, match=r"must have the shape of the data \(3, 2\), got \(4, 2\)"):
        couplings.paired(torch.zeros(3, 2), Points(torch.zeros(4, 2)))
