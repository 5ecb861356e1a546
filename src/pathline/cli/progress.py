"""How a run shows that it lives: a bar on a terminal, plain lines elsewhere, and ``log.jsonl``."""

import json
import math
import sys
import time
from pathlib import Path

from tqdm import tqdm

from pathline.files import replacing
from pathline.train import Step

LINES = 10
RECORDS = 200
QUIET = 15.0
"""Seconds without a line after which one is due."""


class Progress:
    """A callback for `fit`; use it as a context manager.

    Attributes:
        dim: numbers in a row; losses are shown per dimension.
        first: steps that were finished before; what the log holds beyond them is dropped.
        floor: the least loss per dimension that any field can have, ``None`` where it is unknown.
    """

    def __init__(self, log: Path, dim: int, first: int, floor: float | None = None) -> None:
        self.log, self.dim, self.first = log, dim, first
        self.beside = "" if floor is None else f", floor {floor:.4f}"
        self.bar: tqdm | None = None
        self.before = _kept(log, first)
        self.started = self.said = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.before + time.perf_counter() - self.started

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            self.bar = tqdm(initial=self.first, unit="step", desc="training", file=sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, step: Step) -> None:
        if self.bar is not None:
            self.bar.total = step.steps
            self.bar.update(1)
        every = max(1, step.steps // RECORDS)
        last = step.step == step.steps
        if step.step % every and not last:
            return
        loss = float(step.loss) / self.dim
        self._record(step.step, loss)
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.4f}{self.beside}", refresh=False)
        elif step.step % max(1, step.steps // LINES) < every or last or time.perf_counter() - self.said > QUIET:
            self.said = time.perf_counter()
            rate = (step.step - self.first) / max(self.seconds - self.before, 1e-9)
            left = (step.steps - step.step) / max(rate, 1e-9)
            line = f"step {step.step}/{step.steps}  loss {loss:.4f}{self.beside}  {rate:.0f} steps/s  {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    def _record(self, step: int, loss: float) -> None:
        known = loss if math.isfinite(loss) else None
        record = {"step": step, "loss_per_dim": known, "seconds": round(self.seconds, 3)}
        try:
            with self.log.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise ValueError(f"{self.log}: cannot be written ({error.strerror}); make room, then go on") from error


def _kept(log: Path, first: int) -> float:
    """Drops what a log holds beyond a step, a torn line too; returns the seconds of the last record that stays."""
    if not log.exists():
        return 0.0
    kept = []
    for line in log.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if record["step"] > first:
            break
        kept.append(record)
    with replacing(log) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
    return kept[-1]["seconds"] if kept else 0.0
