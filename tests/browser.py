"""Pages in a headless browser, with all that they say and ask for."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ARGUMENTS = "--disable-gpu --disable-background-networking --use-gl=angle --use-angle=swiftshader"
SIZE = {"width": 1000, "height": 640}


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser from the PATH; without one the test is skipped."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs chromium on the PATH")
    from playwright.sync_api import sync_playwright

    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        arguments = [*ARGUMENTS.split(), "--enable-unsafe-swiftshader", *root]
        started = playwright.chromium.launch(executable_path=program, args=arguments)
        yield started
        started.close()


class Tab:
    """A page in the browser, with all that it said and asked for."""

    def __init__(self, browser: Any, path: Path, script: str = "", **options: Any) -> None:
        self.page = browser.new_page(**({"viewport": SIZE} | options))
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self.said.append(m.text))
        self.page.on("pageerror", lambda e: self.said.append(str(e)))
        self.page.on("request", lambda r: self.asked.append(r.url))
        if script:
            self.page.add_init_script(script)
        self.page.goto(path.as_uri())

    def get(self, expression: str) -> Any:
        return self.page.evaluate(expression)

    def errors(self) -> list[str]:
        return [text for text in self.said if "GL Driver Message" not in text]

    def scene_box(self) -> dict[str, float]:
        return self.page.locator("canvas").bounding_box()

    def picture(self) -> np.ndarray:
        self.page.wait_for_timeout(100)
        return np.asarray(Image.open(BytesIO(self.page.locator(".stage").screenshot())).convert("RGB"), dtype=float)

    def wait(self, condition: str) -> None:
        wait(self.page, condition)


def wait(page: Any, condition: str) -> None:
    page.evaluate(f"""new Promise((done, fail) => {{
        const late = performance.now() + 8000;
        const look = () => {{
            if ({condition}) done();
            else if (performance.now() > late) fail(new Error({json.dumps(condition)}));
            else setTimeout(look, 15);
        }};
        look();
    }})""")
