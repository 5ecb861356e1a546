import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from pathline.viz.figures import DATA, SAMPLES, samples_figure, save_figure


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def points(fig: Figure) -> list[np.ndarray]:
    marks = [c for ax in fig.axes for c in ax.collections if isinstance(c, PathCollection)]
    return [np.asarray(c.get_offsets()) for c in marks]


def steps(fig: Figure) -> list[tuple[np.ndarray, np.ndarray]]:
    patches = [p for p in fig.axes[0].patches if isinstance(p, StepPatch)]
    return [(np.asarray(p.get_data()[0]), np.asarray(p.get_data()[1])) for p in patches]


def texts(fig: Figure) -> set[str]:
    return {t.get_text() for t in fig.findobj(Text) if t.get_visible() and isinstance(t, Text)}


@pytest.mark.parametrize("d", [1, 2, 3, 4, 7])
def test_names_are_drawn_as_written(d: int, tmp_path: Path):
    names = [r"$\frac{$", "$x^2$", "<b>&amp;</b>", "a_b%", "c", "d", "e"][:d]
    fig = samples_figure(normal(50, d), normal(60, d, seed=1), names)
    save_figure(fig, tmp_path / "a.png")  # r"$\frac{$" as mathematics would raise
    labels = [t for ax in fig.axes for t in (ax.xaxis.label, ax.yaxis.label) if t.get_text() in names]
    assert {t.get_text() for t in labels} == set(names[:4])
    assert not any(t.get_parse_math() for t in labels)
    assert not any(t.get_usetex() for t in labels)
    assert ("first 4 of 7 columns" in texts(fig)) == (d == 7)


def test_long_names_are_cut():
    fig = samples_figure(normal(9, 1), normal(9, 1), ["two\nlines " + "x" * 50])
    assert fig.axes[0].get_xlabel() == "two lines " + "x" * 29 + "…"


def test_points_share_axes_units_and_every_row():
    data, samples = normal(200, 2), 2 * normal(100, 2, seed=1) + 3
    fig = samples_figure(data, samples, ["x", "y"])
    left, right = fig.axes
    assert [ax.get_title() for ax in fig.axes] == ["data", "samples"]
    assert left.get_xlim() == right.get_xlim()
    assert left.get_ylim() == right.get_ylim()
    height, width = np.ptp(left.get_ylim()), np.ptp(left.get_xlim())
    assert left.get_box_aspect() == pytest.approx(height / width)
    for shown, rows in zip(points(fig), (data, samples), strict=True):
        np.testing.assert_allclose(shown, rows.numpy())
    assert not any("beyond" in t for t in texts(fig))


def test_unlike_units_make_a_square_panel():
    fig = samples_figure(normal(50, 2) * torch.tensor([1.0, 1e4]), normal(50, 2), ["x", "y"])
    assert fig.axes[0].get_box_aspect() == 1


def test_many_points_are_thinned():
    fig = samples_figure(normal(10_000, 2), normal(3001, 2), ["x", "y"])
    assert [len(shown) for shown in points(fig)] == [3000, 3000]
    assert len(points(samples_figure(normal(9000, 3), normal(20, 3), list("xyz")))[0]) == 3020


def test_a_few_wild_samples_are_counted_and_do_not_shrink_the_picture():
    samples = normal(2000, 2, seed=1)
    samples[:3] *= 1e6
    fig = samples_figure(normal(2000, 2), samples, ["x", "y"])
    assert np.abs(fig.axes[0].get_xlim()).max() < 10
    assert "3 of 2,000 samples lie beyond the axes" in texts(fig)


def test_pairs_show_both_in_the_same_axes():
    data, samples = normal(40, 3), normal(30, 3, seed=1)
    fig = samples_figure(data, samples, ["x", "y", "z"])
    clouds = [c for ax in fig.axes for c in ax.collections if isinstance(c, PathCollection)]
    assert len(clouds) == 3
    last = clouds[-1]  # z over y
    colour = np.asarray(last.get_facecolor())[:, :3]
    shown = np.asarray(last.get_offsets())
    for rows, hue in ((data, DATA), (samples, SAMPLES)):
        mine = shown[np.isclose(colour, to_rgb(hue)).all(1)]
        expected = rows[:, 1:].numpy()
        np.testing.assert_allclose(mine[mine[:, 0].argsort()], expected[expected[:, 0].argsort()], rtol=1e-6)


def test_histograms_are_densities():
    fig = samples_figure(normal(5000, 1), normal(3000, 1, seed=1), ["x"])
    for count, edges in steps(fig):
        assert (count * np.diff(edges)).sum() == pytest.approx(1)
        assert count[len(count) // 2] == pytest.approx(0.4, abs=0.08)


def test_whole_numbers_have_a_bin_each():
    data = torch.arange(6.0).repeat(10)[:, None]
    count, edges = steps(samples_figure(data, data, ["n"]))[0]
    inside = count > 0
    np.testing.assert_allclose(count[inside], 1 / 6)
    np.testing.assert_allclose(edges[:-1][inside], np.arange(6) - 0.5)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 30])
def test_constant_columns_and_few_rows(d: int, n: int, tmp_path: Path):
    data = torch.full((n, d), 7.0)
    save_figure(samples_figure(data, data, list("abc")[:d]), tmp_path / "a.png")


def test_pictures_are_tiled_on_the_scale_of_the_data():
    data = torch.stack([torch.full((4, 5), v) for v in (-1.0, 1.0, 0.0)])
    samples = torch.stack([torch.full((4, 5), v) for v in (3.0, -2.0, 0.5, 0.0)])
    left, right = (np.asarray(ax.images[0].get_array()) for ax in samples_figure(data, samples, [], (4, 5)).axes)
    assert left.shape == right.shape == (4 + 1 + 4, 5 + 1 + 5)
    assert (left[0, 0], left[0, 6], left[5, 0]) == (0, 1, 0.5)
    assert (right[0, 0], right[0, 6], right[5, 0]) == (1, 0, 0.75)
    assert (left[4] == 1).all()
    assert (left[:, 5] == 1).all()


def test_pictures_in_colour():
    data = torch.rand(7, 3 * 4 * 5, generator=torch.Generator().manual_seed(0))
    fig = samples_figure(data, data, [], (3, 4, 5))
    shown = np.asarray(fig.axes[0].images[0].get_array())
    exact = ((data - data.min()) / (data.max() - data.min())).reshape(7, 3, 4, 5)
    np.testing.assert_allclose(shown[:4, 6:11], exact[1].permute(1, 2, 0).numpy(), atol=1e-6)
    grey = samples_figure(data[:, :40], data[:, :40], [], (2, 4, 5)).axes[0].images[0].get_array()
    assert np.asarray(grey).ndim == 2


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_save_replaces_the_file_whole(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / f"samples.{suffix}"
    fig = samples_figure(normal(20, 2), normal(20, 2), ["x", "y"])
    save_figure(fig, str(path))
    first = path.read_bytes()
    assert len(first) > 1000

    def stop(file, **_):
        Path(file).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(fig, "savefig", stop)
    with pytest.raises(ValueError, match="disk full"):
        save_figure(fig, path)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


def test_png_size_and_foreign_letters(tmp_path: Path):
    fig = samples_figure(normal(20, 1), normal(20, 1), ["温度"])
    save_figure(fig, tmp_path / "a.png", dpi=100)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (520, 320)


def test_bad_input(tmp_path: Path):
    x = normal(5, 2)
    with pytest.raises(ValueError, match=r"data must have shape \(n, 3\) for 3 columns, got \(5, 2\)"):
        samples_figure(x, x, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"samples must have shape \(n, 2\) for 2 columns, got \(5, 3\)"):
        samples_figure(x, normal(5, 3), ["a", "b"])
    with pytest.raises(ValueError, match=r"samples must have at least one row, got \(0, 2\)"):
        samples_figure(x, x[:0], ["a", "b"])
    with pytest.raises(ValueError, match=r"samples must be finite, got 10 entries"):
        samples_figure(x, x * math.nan, ["a", "b"])
    with pytest.raises(ValueError, match=r"shape must be \(h, w\) or \(c, h, w\), got \(2,\)"):
        samples_figure(x, x, [], (2,))
    with pytest.raises(ValueError, match=r"data must have rows of shape \(2, 2\), got \(2,\)"):
        samples_figure(x, x, [], (2, 2))
    with pytest.raises(ValueError, match=r"path must end in one of .*\.png.*, got '.*a\.xyz'"):
        save_figure(samples_figure(x, x, ["a", "b"]), tmp_path / "a.xyz")
