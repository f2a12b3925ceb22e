"""Ctrl-C and SIGTERM during a training run: finish the step, save, then stop.

By default either ends a Python program between two instructions of its own, and the work since the last checkpoint is
lost. `StopSignals` makes the first one a request that the training loop honours after its step; a second one stops at
once. A checkpoint that is being written then is dropped whole (`atomic_folder`), and the one before it stands.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_FIRST = "\nstopping after this step, with a checkpoint; once more stops at once\n"


class Interrupted(KeyboardInterrupt):
    """A run was stopped from outside; the message says what is saved. `number` is the signal's."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class StopSignals:
    """While the block runs, the first Ctrl-C or SIGTERM is only noted in `number`; the second raises `Interrupted`.

    With `at_once` set, the first one raises too. The earlier handlers come back at the end of the block. Only the
    main thread may set handlers: in another thread nothing happens here, and there `should_stop` of `train` stops a
    run. A signal that is being ignored stays ignored (a shell does that for jobs in the background).
    """

    def __init__(self, *, announce: bool) -> None:
        """`announce`: tell the person who pressed Ctrl-C that it was heard, as a step may take a while."""
        self.announce = announce
        self.number: int | None = None
        self.at_once = False
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # None is a handler that was not set from Python, which could not be put back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.at_once or self.number is not None:
            raise Interrupted(number, "stopped at once")
        self.number = number
        if self.announce:
            # Not print: the signal may have come in the middle of another print.
            with contextlib.suppress(OSError, ValueError):
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _FIRST.encode())
