"""How a run shows that it lives: a bar on a terminal, plain lines elsewhere, and ``log.jsonl``."""

import json
import sys
import time
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from pathline.train import Step

LINES = 10
RECORDS = 200


class Progress:
    """A callback for `fit`; use it as a context manager.

    Attributes:
        dim: numbers in a row; losses are shown per dimension.
    """

    def __init__(self, log: Path, dim: int, first: int) -> None:
        self.log, self.dim, self.first = log, dim, first
        self.bar: tqdm | None = None
        self.file: TextIO | None = None
        self.started = time.perf_counter()

    def __enter__(self) -> "Progress":
        self.file = self.log.open("a")
        if sys.stderr.isatty():
            self.bar = tqdm(initial=self.first, unit="step", desc="training", file=sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.file is not None:
            self.file.close()

    def __call__(self, step: Step) -> None:
        if self.bar is not None:
            self.bar.total = step.steps
            self.bar.update(1)
        every = max(1, step.steps // RECORDS)
        last = step.step == step.steps
        if step.step % every and not last:
            return
        loss = float(step.loss) / self.dim
        seconds = time.perf_counter() - self.started
        rate = (step.step - self.first) / max(seconds, 1e-9)
        if self.file is not None:
            record = {"step": step.step, "loss_per_dim": loss, "seconds": round(seconds, 3)}
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        elif step.step % max(1, step.steps // LINES) < every or last:
            left = (step.steps - step.step) / max(rate, 1e-9)
            line = f"step {step.step}/{step.steps}  loss {loss:.4f}  {rate:.0f} steps/s  {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)
