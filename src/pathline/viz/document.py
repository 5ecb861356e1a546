"""One HTML file of our own assets and some data, that opens from disk and needs no network."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from pathline.files import replacing

ALPHABET = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", dtype=np.uint8)
POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; img-src data:; base-uri 'none'; form-action 'none'"
)


def compose(
    template: str, styles: Sequence[str], scripts: Sequence[str], texts: dict[str, str], data: dict[str, Any]
) -> str:
    """The asset ``template`` with style sheets and scripts in it, the texts escaped, and the data as JSON."""
    style = "\n".join(asset(name) for name in styles)
    script = "\n".join(asset(name) for name in scripts)
    parts = {
        **{name: html.escape(text) for name, text in texts.items()},
        "policy": POLICY.format(script=_digest(script), style=_digest(style)),
        "style": style,
        "script": script,
        "data": embed(data),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], asset(template))


def save(page: str, path: str | Path) -> None:
    """Writes the page to ``path``, whole or not at all; a folder that is not there is a ValueError."""
    with replacing(path) as temporary:
        temporary.write_bytes(page.encode())


def notebook(title: str, page: str, height: int = 640) -> str:
    """The page in a frame of its own, which a notebook shows."""
    look = f"width: 100%; height: {height}px; border: 0; border-radius: 8px"
    label, inside = html.escape(title), html.escape(page)
    return f'<iframe title="{label}" sandbox="allow-scripts allow-downloads" style="{look}" srcdoc="{inside}"></iframe>'


def pack(shares: np.ndarray) -> str:
    """Numbers in [0, 1], others clipped to it, as two characters of six bits each."""
    values = np.rint(np.clip(shares.ravel(), 0, 1) * 4095).astype(np.uint16)
    return ALPHABET[np.stack([values >> 6, values & 63], axis=-1)].tobytes().decode()


def embed(data: dict[str, Any]) -> str:
    """JSON that no text in it can break out of a script element with."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def asset(name: str) -> str:
    return (files("pathline.viz") / "assets" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
