"""The JavaScript linter over each page's script as a whole, so that names of one file are known to the others.

python tests/viz/lint.py
"""

import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from pathline.viz import explore, page, view
from pathline.viz.document import asset

PAGES = {"flow": page.SCRIPTS, "view": view.SCRIPTS, "explore": explore.SCRIPTS}
STRICT = '"use strict";'
CONFIG = Path(__file__).parents[2] / ".oxlintrc.json"


def complaints(scripts: tuple[str, ...]) -> set[str]:
    """What the linter says of these assets in one file, each as ``file:line: message``."""
    lines = [(name, number, line) for name in scripts for number, line in enumerate(asset(name).split("\n"), 1)]
    with tempfile.TemporaryDirectory() as folder:
        text = "\n".join("" if line == STRICT else line for *_, line in lines)
        (Path(folder) / "page.js").write_text(text, encoding="utf-8")
        command = [Path(sysconfig.get_path("scripts")) / "oxlint", "--config", CONFIG, "--format", "json", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = set()
    for said in json.loads(done.stdout)["diagnostics"]:
        name, number, _ = lines[said["labels"][0]["span"]["line"] - 1] if said["labels"] else ("page", 0, "")
        found.add(f"{name}:{number}: {said['message']} {said.get('code', '')}")
    return found


def main() -> int:
    found = sorted(set().union(*(complaints(scripts) for scripts in PAGES.values())))
    print("\n".join(found) or f"{len(PAGES)} scripts of pages are clean")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
