"""Ctrl-C between two steps, never within one."""

import signal
import threading
from types import FrameType
from typing import Any


class HeldBack:
    """A context in which the first Ctrl-C is only noted, and a second one goes through.

    Other handlers of SIGINT than Python's own are left alone, and so are threads other than the main one.

    Attributes:
        asked: whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> "HeldBack":
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
