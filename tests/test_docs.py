"""The README, the docs and the examples run."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from pathline.cli import main

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def blocks(file: str, language: str) -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), re.DOTALL))


@pytest.mark.parametrize("file", ["README.md", "docs/extending.md", "docs/reading-the-numbers.md"])
def test_python_blocks_run(file: str) -> None:
    code = blocks(file, "python")
    assert "import pathline" in code
    exec(compile(code, file, "exec"), {"__name__": file})


def test_shell_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for line in blocks("README.md", "sh").splitlines() if line.strip()]
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)
        assert words[0] == "pathline"
        assert main(words[1:]) == 0, line


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(example.read_text().splitlines()) <= 80
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()
