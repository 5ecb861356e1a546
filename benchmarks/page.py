"""How soon the explore page is there, what one recomputation costs, and how many frames a second it plays."""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import arguments, finish, machine

from pathline.viz.explore import ExplorePage

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from browser import chromium

OVERLAYS = ("particles", "pathlines", "arrows", "points")
SHOWN = {"off": (), "particles": ("particles",), "all": OVERLAYS}
RECOMPUTE = """count => Array.from({ length: count }, (_, k) => {
    explore.state.t = k / (count - 1);
    return pathline.recompute();
})"""
FRAMES = """async seconds => {
    pathline.seek(0);
    pathline.play(true);
    const [begin, drawn] = [performance.now(), pathline.drawn];
    await new Promise((done) => setTimeout(done, 1000 * seconds));
    const rate = (pathline.drawn - drawn) / (performance.now() - begin) * 1000;
    pathline.play(false);
    return rate;
}"""


def opened(browser: Any, path: Path) -> Any:
    page = browser.new_page(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    page.goto(path.as_uri())
    page.wait_for_function("window.pathline")
    return page


def openings(browser: Any, path: Path, times: int) -> dict[str, float]:
    """Milliseconds from opening to the first picture and to the live one, medians."""
    found = []
    for _ in range(times):
        page = opened(browser, path)
        found.append(page.evaluate("[pathline.firstPicture, pathline.live]"))
        page.close()
    first, live = zip(*found, strict=True)
    return {"first_picture_ms": statistics.median(first), "live_ms": statistics.median(live)}


def recompute(page: Any, count: int) -> float:
    """Milliseconds of script for one density of 1,000 points on 80 x 80 nodes, median over t."""
    page.evaluate("pathline.apply({ data: 'annulus', n: 1000, particles: false })")
    return statistics.median(page.evaluate(RECOMPUTE, count))


def rate(page: Any, shown: tuple[str, ...], seconds: float) -> float:
    """Frames a second while the time plays; the particles' flights are worked out before."""
    page.evaluate("on => pathline.apply({ ...on, n: 1000 })", {name: name in shown for name in OVERLAYS})
    page.wait_for_timeout(2500)
    return page.evaluate(FRAMES, seconds)


def main() -> None:
    options = arguments(__doc__ or "")
    rounds, seconds = (1, 2.0) if options.quick else (3, 6.0)
    print(machine())
    with chromium() as browser, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "explore.html"
        ExplorePage().save(path)
        figures = openings(browser, path, 1 + 2 * rounds)
        page = opened(browser, path)
        figures["recompute_ms"] = recompute(page, 101)
        for name, shown in SHOWN.items():
            figures[f"frames_{name}"] = statistics.median(rate(page, shown, seconds) for _ in range(rounds))
    for name, value in figures.items():
        print(f"{name:18} {value:8.1f}")
    finish("page", figures, options.check)


if __name__ == "__main__":
    main()
