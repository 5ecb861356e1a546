"""The page of a trained run: what it holds, and what a browser makes of it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from browser import SIZE, Tab, wait
from pathline.data.tables import read_table
from pathline.metrics import Measure
from pathline.model import Model
from pathline.train.config import Config
from pathline.train.dataset import Dataset, from_table
from pathline.train.default import train
from pathline.train.recipe import Recipe
from pathline.viz.film import strip
from pathline.viz.view import Cloud, ViewPage, view_page

HOSTILE = "<img src=x onerror=window.hacked=1></script>"
LOG = [{"step": 10 * k, "loss_per_dim": 1.5 - 0.01 * k} for k in range(1, 30)]
MEASURES = {"w2": Measure(0.2, 0.1, 0.01, 50), HOSTILE: Measure(1.0, None, None, 1)}


def run_of(folder: Path, rows: np.ndarray, names: list[str]) -> tuple[Model, Dataset]:
    """A model of a few steps."""
    if rows.ndim == 2:
        file = folder / "rows.csv"
        header = ",".join(f'"{name}"' for name in names)
        np.savetxt(file, rows, delimiter=",", header=header, comments="", fmt="%.6f")
    else:
        file = folder / "rows.npy"
        np.save(file, rows)
    config = Config(recipe=Recipe(steps=20, batch_size=32), width=16, depth=2)
    dataset = from_table(read_table(str(file)), config)
    return train(dataset, config), dataset


def rows_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape) + 2.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("view")


@pytest.fixture(scope="module")
def plane(folder: Path) -> ViewPage:
    return view_page(*run_of(folder, rows_of(60, 2), [HOSTILE, "b"]), LOG, MEASURES, title=HOSTILE)


@pytest.fixture(scope="module")
def cloud(folder: Path) -> ViewPage:
    return view_page(*run_of(folder, rows_of(60, 4), list("abcd")), LOG, title="Cloud")


@pytest.fixture(scope="module")
def pictures(folder: Path) -> ViewPage:
    return view_page(*run_of(folder, rows_of(40, 5, 4), []), LOG, title="Pictures")


def opened(browser: Any, page: ViewPage, path: Path, **options: Any) -> Tab:
    page.save(path)
    return Tab(browser, path, **({"reduced_motion": "reduce"} | options))


@pytest.fixture(scope="module")
def plane_tab(browser: Any, plane: ViewPage, folder: Path) -> Iterator[Tab]:
    tab = opened(browser, plane, folder / "plane.html")
    yield tab
    assert tab.errors() == []
    assert len(tab.asked) == 1
    tab.page.close()


@pytest.fixture
def still(plane_tab: Tab) -> Tab:
    plane_tab.page.set_viewport_size(SIZE)
    plane_tab.page.emulate_media(color_scheme="light")
    plane_tab.get("pathline.play(false); pathline.seek(0.5); flow.scene.key('0'); document.activeElement.blur()")
    return plane_tab


# The file


def test_a_notebook_shows_the_page(plane: ViewPage) -> None:
    frame = plane._repr_html_()
    assert 'sandbox="allow-scripts allow-downloads"' in frame
    assert "<img" not in frame


def test_principal_components_come_first_and_are_uncorrelated(cloud: ViewPage) -> None:
    moving = cloud.moving
    assert isinstance(moving, Cloud)
    assert moving.axes[0].startswith("principal component 1")
    assert moving.axes[2:] == ("a", "b", "c", "d")
    first, second = moving.moved[-1, :, 0], moving.moved[-1, :, 1]
    assert abs(np.corrcoef(first, second)[0, 1]) < 1e-6
    assert first.var() >= second.var()


def test_a_figure_can_be_restyled(plane: ViewPage) -> None:
    fig = strip(plane.moving, (0.0, 1.0))
    assert [ax.get_title() for ax in fig.axes] == ["t = 0.00", "t = 1.00"]
    assert fig.axes[0].get_xlabel() in HOSTILE or fig.axes[0].get_xlabel().endswith("…")


def test_wide_tables_and_big_pictures_stay_below_a_megabyte(folder: Path) -> None:
    for rows in (rows_of(40, 60), rows_of(30, 3, 40, 48)):
        page = view_page(*run_of(folder, rows, [f"c{i}" for i in range(60)]))
        assert len(page.html.encode()) < 1_000_000


# In a browser


def test_every_part_is_there_and_hostile_text_is_text(still: Tab) -> None:
    assert still.page.locator("h1").text_content() == HOSTILE
    assert still.page.locator("#measures tbody th").nth(1).text_content() == HOSTILE
    assert still.page.locator(".labels .name").first.text_content() == HOSTILE
    assert still.get("window.hacked") is None
    assert still.page.locator("img").count() == 0
    for name in ("#compare", "#r2", "#overTime", "#training", "#memory", "#quality", "#settings"):
        assert still.page.locator(name).is_visible(), name
    assert still.page.locator(".chart svg").count() == 3
    assert still.page.get_by_text("holds rows of the training data").is_visible()


def test_charts_and_fields_say_what_they_show(still: Tab) -> None:
    pictures = "Array.from(document.querySelectorAll('.chart svg, #field'))"
    said = still.get(f"{pictures}.map((e) => e.getAttribute('aria-label'))")
    assert len(said) == 4
    assert all(said)
    assert any("t = 0.50" in text for text in said)
    unnamed = still.get("""Array.from(document.querySelectorAll('button, select, input, canvas'))
        .filter((e) => !e.labels?.length && !e.getAttribute('aria-label') && !e.textContent.trim()).length""")
    assert unnamed == 0


def test_time_moves_the_scene_the_field_and_the_marks(still: Tab) -> None:
    def looks() -> tuple[list[float], str, str]:
        still.page.wait_for_timeout(60)
        return (
            still.get("Array.from(flow.dots.xyz.slice(0, 3))"),
            still.get("document.getElementById('field').toDataURL()"),
            still.get("document.querySelector('#r2 .now').getAttribute('x1')"),
        )

    before = looks()
    still.page.get_by_label("Time t", exact=True).fill("0.8")
    assert still.page.locator("#clock").inner_text() == "t = 0.80"
    assert all(a != b for a, b in zip(before, looks(), strict=True))


def test_the_chart_is_drawn_to_scale(still: Tab, plane: ViewPage) -> None:
    """Each point of the R2 curve lies where its axes say."""
    points = still.get("document.querySelector('#r2 .series').getAttribute('points')")
    shown = np.array([[float(v) for v in pair.split(",")] for pair in points.split(" ")])
    curves = plane.facts["curves"]
    width = still.get("document.querySelector('#r2 svg').viewBox.baseVal.width")
    np.testing.assert_allclose(shown[:, 0], 44 + np.array(curves["times"]) * (width - 54), atol=0.06)
    low = max(-1.0, min(0.0, *curves["r2"]))
    values = np.clip(curves["r2"], low, 1)
    np.testing.assert_allclose(shown[:, 1], 12 + (1 - (values - low) / (1 - low)) * (216 - 42), atol=0.06)


@pytest.mark.parametrize("name", ["error", "exact", "learned", "rows"])
def test_each_switch_changes_the_picture(still: Tab, name: str) -> None:
    switch = still.page.locator(f"#show-{name}")
    picture = "document.getElementById('field').toDataURL()"
    before = still.get(picture)
    switch.focus()
    still.page.keyboard.press("Space")
    assert not still.get("pathline.playing")
    after = still.get(picture)
    assert after != before
    switch.click()
    assert still.get(picture) == before


def test_drag_wheel_and_keys_move_the_camera(still: Tab) -> None:
    still.get("scrollTo(0, 0)")
    box = still.page.locator(".stage canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 3
    home = still.get("pathline.camera")
    still.page.mouse.move(x, y)
    still.page.mouse.down()
    still.page.mouse.move(x + 60, y)
    still.page.mouse.up()
    assert still.get("pathline.camera.azimuth") != home["azimuth"]
    still.page.mouse.wheel(0, -200)
    still.wait("pathline.camera.zoom > 1.1")
    still.page.locator(".stage canvas").focus()
    still.page.keyboard.press("0")
    assert still.get("pathline.camera") == home
    still.page.keyboard.press("Space")
    still.wait("pathline.playing && pathline.t > 0.52")


def test_two_axes_by_choice(browser: Any, cloud: ViewPage, folder: Path) -> None:
    tab = opened(browser, cloud, folder / "cloud.html")
    assert tab.get("flow.data.columns")[0].startswith("principal component 1")
    tab.page.get_by_label("across").select_option("b")
    tab.page.get_by_label("along").select_option("d")
    assert tab.get("flow.data.columns") == ["b", "d"]
    names = tab.get("Array.from(document.querySelectorAll('.labels .name')).map((e) => e.textContent)")
    assert names[:2] == ["b", "d"]
    moving = cloud.moving
    assert isinstance(moving, Cloud)
    tab.get("pathline.seek(1)")
    shown = np.array(tab.get("Array.from(flow.particles.at(1, new Float32Array(flow.particles.width)))")).reshape(-1, 2)
    ends = moving.ends[[3, 5]].T
    np.testing.assert_allclose(ends[0] + shown * (ends[1] - ends[0]), moving.moved[-1][:, [3, 5]], atol=6e-3)
    mass = tab.get("""(() => {
        const { density, grid, peak, extent: [a, b, c, d] } = flow.data;
        const last = density.slice(-grid * grid).reduce((sum, v) => sum + v * v, 0) * peak;
        return last * (b - a) * (d - c) / (grid - 1) ** 2;
    })()""")
    assert mass == pytest.approx(1, abs=0.1)
    assert tab.errors() == []
    tab.page.close()


def test_pictures_move_from_noise_to_samples(browser: Any, pictures: ViewPage, folder: Path) -> None:
    tab = opened(browser, pictures, folder / "pictures.html")
    count = pictures.moving.data()["shape"][0]
    assert tab.page.locator("#gallery figure").count() == count
    assert tab.page.locator("#gallery canvas").count() == 2 * count
    picture = "document.querySelector('#gallery canvas').toDataURL()"
    last = tab.get(picture)
    tab.page.keyboard.press("Space")
    tab.wait("pathline.playing && pathline.t > 0.05 && pathline.t < 1")
    tab.page.keyboard.press("Space")
    assert tab.get(picture) != last
    assert not tab.page.locator(".stage").is_visible()
    assert tab.errors() == []
    tab.page.close()


def test_one_column_is_a_surface_over_time(browser: Any, folder: Path) -> None:
    page = view_page(*run_of(folder, rows_of(60, 1), ["a"]), LOG, title="Line")
    tab = opened(browser, page, folder / "line.html")
    assert tab.get("flow.data.columns") == ["a", "time t"]
    tab.get("pathline.seek(0.25)")
    places = np.array(tab.get("Array.from(flow.dots.xyz)")).reshape(-1, 3)
    shown = places[places[:, 0] > -1]
    assert len(shown) > 100
    np.testing.assert_allclose(shown[:, 1], 0.25, atol=2e-3)
    assert tab.errors() == []
    tab.page.close()


def test_without_webgl_and_without_the_data(browser: Any, plane: ViewPage, folder: Path) -> None:
    script = """
        const get = HTMLCanvasElement.prototype.getContext;
        HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
            return kind === "webgl2" ? null : get.call(this, kind, ...rest);
        };
    """
    bare = replace(plane, facts={**plane.facts, "field": None, "curves": None, "log": [], "measures": []})
    bare.save(folder / "bare.html")
    tab = Tab(browser, folder / "bare.html", script, reduced_motion="reduce")
    assert tab.get("pathline.renderer") == "canvas"
    for name in ("#compare", "#r2", "#overTime", "#training", "#quality"):
        assert not tab.page.locator(name).is_visible()
    assert tab.errors() == []
    tab.page.close()


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_colours_follow_the_reader(still: Tab, scheme: str) -> None:
    still.page.emulate_media(color_scheme=scheme)
    still.page.wait_for_timeout(60)
    pixel = still.picture()[5:20, 5:20].mean()
    assert pixel < 60 if scheme == "dark" else pixel > 200


@pytest.mark.parametrize(("width", "height"), [(360, 640), (640, 400), (320, 256), (1280, 800)])
def test_nothing_sticks_out(still: Tab, width: int, height: int) -> None:
    still.page.set_viewport_size({"width": width, "height": height})
    still.page.wait_for_timeout(60)
    assert still.get("document.documentElement.scrollWidth") <= width
    wide = still.get("""Array.from(document.querySelectorAll('.card, .stage, .controls, canvas, svg'))
        .filter((e) => e.offsetParent !== null || e.getBoundingClientRect().width)
        .filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.className || e.tagName)""")
    assert wide == []


def test_a_reader_who_wants_motion_gets_it(browser: Any, plane: ViewPage, folder: Path) -> None:
    tab = opened(browser, plane, folder / "moving.html", reduced_motion="no-preference")
    tab.wait("pathline.playing && pathline.t > 0.02")
    assert tab.errors() == []
    tab.page.close()


def test_a_notebook_runs_it(browser: Any, cloud: ViewPage) -> None:
    page = browser.new_page(reduced_motion="reduce")
    page.set_content(cloud._repr_html_())
    wait(page.frames[-1], "window.pathline && pathline.t === 1")
    page.close()


def test_no_model_has_less_loss_than_the_floor_of_its_rows(plane: ViewPage, cloud: ViewPage) -> None:
    """Both curves are over the same draws of all rows: 6 sigma of what remains is below 0.1 a bin."""
    for page in (plane, cloud):
        curves = page.facts["curves"]
        assert min(np.subtract(curves["train"], curves["floor"])) > -0.1
        assert np.mean(curves["train"]) > np.mean(curves["floor"])


def test_the_data_can_not_break_out(plane: ViewPage) -> None:
    assert plane.html.count("</script>") == 2
    assert json.dumps(HOSTILE) not in plane.html


def test_samples_do_not_depend_on_what_was_drawn_before(folder: Path) -> None:
    model, dataset = run_of(folder, rows_of(60, 2), ["a", "b"])
    torch.manual_seed(1)
    first = view_page(model, dataset, seed=5).html
    torch.manual_seed(2)
    assert view_page(model, dataset, seed=5).html == first
    assert view_page(model, dataset, seed=6).html != first
