"""The page: what its file holds, and what a browser makes of it."""

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser import SIZE, Tab, wait
from pathline.viz.page import FlowPage

HOSTILE = "<img src=x onerror=window.hacked=1></script>\u2028{{data}}"


def exact_annulus(particles: int = 300, grid: int = 48, frames: int = 21, rows: int = 1000) -> FlowPage:
    """The exact flow of `rows` points with radius in [2, 3] on the path N(t x1, (1 - 0.8 t)^2 I)."""
    draw = np.random.default_rng(0)
    radius, angle = draw.uniform(2, 3, rows), draw.uniform(0, 2 * np.pi, rows)
    data = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)

    def exponents(x: np.ndarray, t: float) -> np.ndarray:
        square = (x * x).sum(1, keepdims=True) - 2 * t * x @ data.T + t * t * (data * data).sum(1)
        return -square / (2 * (1 - 0.8 * t) ** 2)

    def velocity(x: np.ndarray, t: float) -> np.ndarray:
        e = exponents(x, t)
        weights = np.exp(e - e.max(1, keepdims=True))
        mean = weights @ data / weights.sum(1, keepdims=True)
        return mean - 0.8 / (1 - 0.8 * t) * (x - t * mean)

    times = np.linspace(0, 1, frames)
    states = [draw.standard_normal((particles, 2))]
    for t, s in pairwise(times):
        x, h = states[-1], s - t
        a = velocity(x, t)
        b = velocity(x + h / 2 * a, t + h / 2)
        c = velocity(x + h / 2 * b, t + h / 2)
        states.append(x + h / 6 * (a + 2 * b + 2 * c + velocity(x + h * c, s)))
    axis = np.linspace(-4, 4, grid)
    nodes = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    density = [np.exp(exponents(nodes, t)).mean(1) / (2 * np.pi * (1 - 0.8 * t) ** 2) for t in times]
    return FlowPage(
        title="Annulus",
        columns=("x", "y"),
        times=times,
        particles=np.stack(states).astype(np.float32),
        density=np.stack(density).reshape(frames, grid, grid).astype(np.float32),
        extent=(-4.0, 4.0, -4.0, 4.0),
        note="Trained on a stream of annulus; holds no row of the data.",
    )


def small(**changes: Any) -> FlowPage:
    values: dict[str, Any] = {
        "title": "Small",
        "columns": ("x", "y"),
        "times": np.array([0.0, 0.25, 1.0]),
        "particles": np.zeros((3, 5, 2), np.float32),
        "density": np.ones((3, 4, 4), np.float32),
        "extent": (-1.0, 1.0, -2.0, 2.0),
    }
    return FlowPage(**(values | changes))


def data_of(page: FlowPage) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.html, re.DOTALL)
    assert found
    return json.loads(found[1])


def unpack(text: str) -> np.ndarray:
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    values = np.array([digits.index(c) for c in text]).reshape(-1, 2)
    return (64 * values[:, 0] + values[:, 1]) / 4095


@pytest.fixture(scope="module")
def annulus() -> FlowPage:
    return exact_annulus()


# The file


def test_a_page_of_usual_size_stays_below_700_kb() -> None:
    draw = np.random.default_rng(0)
    page = small(
        times=np.linspace(0, 1, 41), particles=draw.normal(size=(41, 1500, 2)), density=draw.random((41, 64, 64))
    )
    assert len(page.html.encode()) < 700_000


def test_numbers_keep_twelve_bits(annulus: FlowPage) -> None:
    data = data_of(annulus)
    heights = np.sqrt(annulus.density / annulus.density.max())
    np.testing.assert_allclose(unpack(data["density"]), heights.ravel(), atol=0.51 / 4095)
    places = 16 * unpack(data["particles"]).reshape(annulus.particles.shape) - 8
    np.testing.assert_allclose(places, annulus.particles, atol=16 * 0.51 / 4095)
    assert data["peak"] == pytest.approx(annulus.density.max())


def test_text_can_not_leave_its_place() -> None:
    page = small(title=HOSTILE, columns=(HOSTILE, "y"), note=HOSTILE)
    assert "<img" not in page.html
    assert "\u2028" not in page.html.split('id="data">')[1]
    assert page.html.count("</script>") == 2
    assert data_of(page)["columns"][0] == HOSTILE


def test_policy_allows_no_source_but_its_own_script_and_style() -> None:
    page = small().html
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    for tag in ("script", "style"):
        text = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert len(text) == 1
        digest = base64.b64encode(hashlib.sha256(text[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]
    assert not re.search(r"https?://|@import|url\(", page)


def test_same_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    small().save(tmp_path / "a.html")
    small().save(tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes() == small().html.encode()


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, content: bytes) -> None:
        path.write_text("half")
        raise OSError("disk full")

    path = tmp_path / "flow.html"
    path.write_text("old")
    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(ValueError, match="disk full"):
        small().save(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["flow.html"]


def test_a_notebook_shows_the_page_in_a_sandbox() -> None:
    page = small()
    frame = page._repr_html_()
    source = re.search(r'srcdoc="([^"]*)"', frame)
    assert source
    assert html.unescape(source[1]) == page.html
    assert 'sandbox="allow-scripts allow-downloads"' in frame


def at(shape: tuple[int, ...], index: tuple[int, ...], value: float) -> np.ndarray:
    array = np.ones(shape)
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"particles": at((3, 5, 2), (1, 4, 0), np.nan)},
            r"particles must be finite, and 1 of 5 .*frame 1 \(t = 0.25\)",
        ),
        ({"particles": at((3, 5, 2), (2, 0, 1), np.inf)}, r"particles must be finite, and 1 of 5 .*frame 2 \(t = 1\)"),
        ({"particles": np.zeros((2, 5, 2))}, r"particles must have shape \(3, n, 2\).*\(2, 5, 2\)"),
        ({"particles": np.zeros((3, 0, 2))}, "particles must have shape"),
        ({"particles": np.zeros((3, 5, 3))}, "particles must have shape"),
        (
            {"density": at((3, 4, 4), (0, 1, 2), -0.5)},
            r"density must be finite and not negative, and 1 of 16 .*frame 0",
        ),
        ({"density": at((3, 4, 4), (2, 1, 2), np.nan)}, "density must be finite"),
        ({"density": np.zeros((3, 4, 4))}, "density must be above zero somewhere"),
        ({"density": np.ones((3, 4, 5))}, r"density must have shape \(3, g, g\)"),
        ({"density": np.ones((3, 1, 1))}, "density must have shape"),
        ({"times": np.array([0.0, 0.5, 0.9])}, r"times must rise strictly from 0 to 1, got \[0.  0.5 0.9\]"),
        ({"times": np.array([0.0, 0.0, 1.0])}, "times must rise"),
        ({"times": np.array([0.0, np.nan, 1.0])}, "times must rise"),
        ({"times": np.array([1.0])}, "times must hold two frames"),
        ({"extent": (1.0, -1.0, 0.0, 1.0)}, "extent must be finite"),
        ({"extent": (0.0, np.inf, 0.0, 1.0)}, "extent must be finite"),
        ({"columns": ("x",)}, "columns must name two axes"),
    ],
)
def test_bad_input_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


# In a browser


@pytest.fixture(scope="module")
def path(annulus: FlowPage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "flow.html"
    annulus.save(path)
    return path


@pytest.fixture(scope="module")
def quiet_tab(browser: Any, path: Path) -> Iterator[Tab]:
    tab = Tab(browser, path, reduced_motion="reduce")
    yield tab
    tab.page.close()


@pytest.fixture
def still(quiet_tab: Tab) -> Iterator[Tab]:
    """The page of a reader who asked for less motion, as it opens."""
    quiet_tab.get("pathline.play(false); pathline.seek(1); flow.scene.key('0'); document.activeElement.blur()")
    quiet_tab.page.set_viewport_size(SIZE)
    quiet_tab.page.emulate_media(color_scheme="light")
    yield quiet_tab
    assert quiet_tab.errors() == []


@pytest.fixture
def moving(browser: Any, path: Path) -> Iterator[Tab]:
    tab = Tab(browser, path, reduced_motion="no-preference")
    yield tab
    tab.page.close()


def test_the_page_is_quiet_and_quick(moving: Tab, path: Path) -> None:
    assert moving.get("pathline.renderer") == "webgl2"
    moving.wait("pathline.t > 0.1")
    assert moving.get("document.title") == "Annulus"
    assert moving.page.get_by_text("holds no row of the data").is_visible()
    assert moving.errors() == []
    assert moving.asked == [path.as_uri()]
    assert moving.get("pathline.firstPicture") < 5000


def test_play_pause_and_play_again(moving: Tab) -> None:
    moving.wait("pathline.playing && pathline.t > 0.05")
    moving.page.keyboard.press("Space")
    t = moving.get("pathline.t")
    moving.page.wait_for_timeout(150)
    assert moving.get("pathline.t") == t
    moving.page.get_by_role("button", name="Play").click()
    assert moving.page.get_by_role("button", name="Pause").is_visible()
    moving.get("pathline.seek(0.98)")
    moving.wait("pathline.t === 1 && !pathline.playing")
    moving.page.get_by_role("button", name="Play").click()
    moving.wait("pathline.playing && pathline.t > 0.01 && pathline.t < 0.9")


def test_less_motion_means_no_motion_until_asked(browser: Any, path: Path) -> None:
    tab = Tab(browser, path, reduced_motion="reduce")
    tab.page.wait_for_timeout(150)
    assert not tab.get("pathline.playing")
    assert tab.get("pathline.t") == 1
    tab.page.close()


def test_the_slider_moves_time_and_particles(still: Tab) -> None:
    slider = still.page.get_by_label("Time t", exact=True)
    slider.fill("0.5")
    before = still.get("pathline.particle(0)")
    assert still.page.locator("output").inner_text() == "t = 0.50"
    assert slider.get_attribute("aria-valuetext") == "t = 0.50"
    camera = still.get("pathline.camera")
    slider.press("ArrowRight")
    assert still.page.locator("output").inner_text() == "t = 0.51"
    assert still.get("pathline.particle(0)") != before
    assert still.get("pathline.camera") == camera


@pytest.mark.parametrize("t", [0.0, 0.35, 0.375, 1.0])
def test_the_browser_reads_what_was_written(still: Tab, annulus: FlowPage, t: float) -> None:
    still.get(f"pathline.seek({t})")
    share = t * 20 - np.floor(t * 20 * (1 - 1e-9))
    low, high = int(np.floor(t * 20 * (1 - 1e-9))), int(np.floor(t * 20 * (1 - 1e-9))) + 1
    places = (1 - share) * annulus.particles[low] + share * annulus.particles[high]
    heights = np.sqrt(annulus.density / annulus.density.max())
    heights = (1 - share) * heights[low] + share * heights[high]
    shown = np.array(still.get("Array.from({length: 300}, (_, k) => pathline.particle(k))"))
    inside = np.all(np.abs(places) < 3.99, axis=1)
    np.testing.assert_allclose(8 * shown[inside, :2] - 4, places[inside], atol=3e-3)
    cell = (places[inside] + 4) / 8 * 47
    i, j = np.floor(cell[:, 0]).astype(int), np.floor(cell[:, 1]).astype(int)
    a, b = cell[:, 0] - i, cell[:, 1] - j
    floor = (1 - a) * heights[j, i] + a * heights[j, i + 1]
    ceiling = (1 - a) * heights[j + 1, i] + a * heights[j + 1, i + 1]
    np.testing.assert_allclose(shown[inside, 2], (1 - b) * floor + b * ceiling, atol=4e-3)


def test_particles_outside_are_left_out_and_counted(browser: Any, tmp_path: Path) -> None:
    particles = np.zeros((3, 5, 2))
    particles[1:, :2] = 7.0
    particles[2, 4] = 1e30
    small(particles=particles).save(tmp_path / "flow.html")
    tab = Tab(browser, tmp_path / "flow.html", reduced_motion="reduce")
    assert tab.page.locator("#count").inner_text() == "2 of 5"
    assert [tab.get(f"pathline.particle({k})")[0] < -5 for k in range(5)] == [True, True, False, False, True]
    tab.get("pathline.seek(0)")
    assert tab.page.locator("#count").inner_text() == "5"
    assert tab.errors() == []
    tab.page.close()


def test_drag_wheel_and_keys_move_the_camera(still: Tab) -> None:
    box = still.scene_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    home = still.get("pathline.camera")
    before = still.picture()
    still.page.mouse.move(x, y)
    still.page.mouse.down()
    still.page.mouse.move(x + 60, y + 20)
    still.page.mouse.up()
    turned = still.get("pathline.camera")
    assert turned["azimuth"] == pytest.approx(home["azimuth"] - 0.48)
    assert turned["elevation"] == pytest.approx(home["elevation"] + 0.16)
    assert np.abs(still.picture() - before).max() > 50
    still.page.mouse.move(x + 90, y)
    assert still.get("pathline.camera") == turned
    still.page.mouse.wheel(0, -200)
    still.wait(f"pathline.camera.zoom > {home['zoom']} + 0.1")
    still.page.get_by_role("button", name="Reset view").click()
    assert still.get("pathline.camera") == home
    still.page.locator("canvas").focus()
    for key, name, sign in [
        ("ArrowRight", "azimuth", -1),
        ("ArrowLeft", "azimuth", 1),
        ("ArrowDown", "elevation", 1),
        ("ArrowUp", "elevation", -1),
        ("+", "zoom", 1),
        ("-", "zoom", -1),
    ]:
        was = still.get(f"pathline.camera.{name}")
        still.page.keyboard.press(key)
        assert (still.get(f"pathline.camera.{name}") - was) * sign > 0, key


def test_a_zoom_keeps_the_place_under_the_pointer(still: Tab) -> None:
    shown = still.get("""() => {
        const camera = new Camera({ azimuth: 0.4, elevation: 0.6 });
        const place = () => project(camera.matrix([2, 2, 0.8], 1.5, [0.1, 0.1]), [0.2, 0.7, 0.1]);
        const before = place();
        camera.zoomBy(1.7, before);
        return [before, place()];
    }""")
    np.testing.assert_allclose(shown[0], shown[1], atol=1e-6)


@pytest.mark.parametrize(("width", "height"), [(360, 740), (1280, 800), (2560, 1080)])
def test_the_box_fits_at_every_angle(still: Tab, width: int, height: int) -> None:
    reach = still.get(f"""() => {{
        let reach = 0;
        for (let k = 0; k < 40; k++) {{
            const camera = new Camera({{ azimuth: k * 0.16, elevation: 0.06 + k * 0.037 }});
            const matrix = camera.matrix([2, 2, 0.8], {width} / {height}, [0.1, 0.1]);
            for (const [u, v] of [[0, 0], [0, 1], [1, 0], [1, 1]]) {{
                reach = Math.max(reach, ...project(matrix, [u, v, 0]).map(Math.abs));
            }}
        }}
        return reach;
    }}""")
    assert 0.6 < reach < 0.92


def test_two_fingers_zoom(browser: Any, path: Path) -> None:
    tab = Tab(browser, path, reduced_motion="reduce", has_touch=True, is_mobile=True)
    box = tab.scene_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    wire = tab.page.context.new_cdp_session(tab.page)
    for kind, gap in [("touchStart", 40), ("touchMove", 60), ("touchMove", 80), ("touchEnd", 0)]:
        points = [{"x": x - gap, "y": y, "id": 1}, {"x": x + gap, "y": y, "id": 2}] if gap else []
        wire.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    tab.wait("pathline.camera.zoom > 1.5")
    assert tab.errors() == []
    tab.page.context.close()


def test_hostile_names_show_as_text(browser: Any, annulus: FlowPage, tmp_path: Path) -> None:
    page = replace(annulus, title=HOSTILE, columns=(HOSTILE, "y"), note=HOSTILE)
    page.save(tmp_path / "flow.html")
    tab = Tab(browser, tmp_path / "flow.html", reduced_motion="reduce")
    for place in (".labels .name >> nth=0", "h1", ".note span >> nth=0"):
        assert tab.page.locator(place).text_content() == HOSTILE
    assert tab.get("window.hacked") is None
    assert tab.page.locator("img").count() == 0
    assert tab.errors() == []
    assert len(tab.asked) == 1
    tab.page.close()


def test_the_picture_moves_with_time_and_fills_the_scene(still: Tab) -> None:
    first = still.picture()
    still.get("pathline.seek(0)")
    second = still.picture()
    changed = np.abs(first - second).max(axis=2) > 30
    assert changed.mean() > 0.03
    background = first[5, 5]
    drawn = np.abs(second - background).max(axis=2) > 40
    assert drawn[:, :20].mean() < 0.01
    assert drawn[drawn.shape[0] // 4 : -drawn.shape[0] // 4, drawn.shape[1] // 3 : -drawn.shape[1] // 3].mean() > 0.3


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_colours_rise_evenly_for_every_eye(still: Tab, scheme: str) -> None:
    colours = np.array(still.get(f"Array.from(colourMap(COLOUR_STOPS.{scheme}, 64))")).reshape(64, 4)[:, :3] / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    # Machado, Oliveira, Fernandes (2009): protanopia, deuteranopia, tritanopia; and full sight.
    views = [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
        np.eye(3),
    ]
    for view in views:
        luminance = np.clip(linear @ np.array(view).T, 0, 1) @ [0.2126, 0.7152, 0.0722]
        steps = np.diff(116 * np.cbrt(luminance) - 16) * (1 if scheme == "dark" else -1)
        assert steps.min() > 0.3
        assert steps.max() < 3.5 * np.median(steps)


def test_numbers_on_the_axes_are_round(still: Tab) -> None:
    assert still.get("ticks(-4, 4, 5).map(label)") == ["\u22124", "\u22122", "0", "2", "4"]
    assert still.get("ticks(0.03, 0.11, 5).map(label)") == ["0.04", "0.06", "0.08", "0.1"]
    assert still.get("[2e-7, 250000, 12.5].map(label)") == ["2e\u22127", "2.5e5", "12.5"]
    for peak in (3e-9, 0.16, 1.0, 7e4):
        levels = still.get(f"densityLevels({peak})")
        assert len(levels) >= 4
        for height, value in levels:
            assert height == pytest.approx(np.sqrt(value / peak))
            assert 0.15 <= height <= 1


def test_a_finer_grid_follows_a_cubic(still: Tab) -> None:
    nodes = np.linspace(0, 1, 9)
    coarse = 0.2 + nodes[None, :] ** 3 + 0.5 * nodes[:, None] ** 2
    script = f"""() => {{
        const out = new Float32Array(17 * 17);
        refine(Float32Array.from({coarse.ravel().tolist()}), 9, 9, out);
        return Array.from(out);
    }}"""
    fine = np.array(still.get(script)).reshape(17, 17)
    nodes = np.linspace(0, 1, 17)
    expected = 0.2 + nodes[None, :] ** 3 + 0.5 * nodes[:, None] ** 2
    np.testing.assert_allclose(fine[2:-2, 2:-2], expected[2:-2, 2:-2], atol=1e-6)
    np.testing.assert_allclose(fine, expected, atol=0.05)


def test_without_webgl_there_is_a_heat_map(browser: Any, path: Path) -> None:
    script = """
        const get = HTMLCanvasElement.prototype.getContext;
        HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
            return kind === "webgl2" ? null : get.call(this, kind, ...rest);
        };
    """
    tab = Tab(browser, path, script, reduced_motion="reduce")
    assert tab.get("pathline.renderer") == "canvas"
    last = tab.picture()
    tab.get("pathline.seek(0)")
    first = tab.picture()
    middle = (
        slice(first.shape[0] // 2 - 20, first.shape[0] // 2),
        slice(first.shape[1] // 2 - 20, first.shape[1] // 2),
    )
    assert last[middle].mean() - first[middle].mean() > 50
    tab.page.mouse.wheel(0, -200)
    assert tab.errors() == []
    tab.page.close()


def test_a_lost_context_comes_back(still: Tab) -> None:
    before = still.picture()
    still.get("""() => new Promise((done) => {
        const { gl } = flow.scene.renderer;
        const lose = gl.getExtension("WEBGL_lose_context");
        gl.canvas.addEventListener("webglcontextlost", () => setTimeout(() => lose.restoreContext(), 20));
        gl.canvas.addEventListener("webglcontextrestored", () => setTimeout(done, 400));
        lose.loseContext();
    })""")
    assert np.abs(still.picture() - before).mean() < 1


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_colours_follow_the_reader(still: Tab, scheme: str) -> None:
    still.page.emulate_media(color_scheme=scheme)
    brightness = still.picture()[5:30, 5:30].mean()
    assert brightness < 60 if scheme == "dark" else brightness > 200
    assert still.get("flow.scene.theme.name") == scheme


@pytest.mark.parametrize(("width", "height"), [(360, 640), (640, 400), (320, 256)])
def test_nothing_sticks_out_on_small_screens(still: Tab, width: int, height: int) -> None:
    still.page.set_viewport_size({"width": width, "height": height})
    assert still.get("document.documentElement.scrollWidth") <= width
    for name in ("#play", "#time", "#clock", "#reset", "canvas"):
        box = still.page.locator(name).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    small = still.get("Array.from(document.querySelectorAll('button')).filter((b) => b.offsetHeight < 44).length")
    assert small == 0


def test_a_notebook_s_wheel_is_left_alone_until_the_scene_has_focus(browser: Any, annulus: FlowPage) -> None:
    page = browser.new_page(reduced_motion="reduce")
    page.set_content(annulus._repr_html_())
    frame = page.frames[-1]
    wait(frame, "window.pathline && pathline.drawn > 0")
    box = page.locator("iframe").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 250)
    page.mouse.wheel(0, -200)
    page.wait_for_timeout(100)
    assert frame.evaluate("pathline.camera.zoom") == 1
    page.mouse.down()
    page.mouse.up()
    page.mouse.wheel(0, -200)
    wait(frame, "pathline.camera.zoom > 1.1")
    page.close()
