"""Run what a learner wrote so that whatever it does, the notebook goes on.

An answer may raise, run for ever, change its input or end the program: all of that is an ordinary wrong answer, with a
reason. `run` gives the value, or a `Failure` that says what happened and in which line of the answer. Settings that an
answer changes (random state, default dtype, grad mode, number of threads) are put back.

What it cannot stop: one endless operation inside a library, and `os._exit`.
"""

from __future__ import annotations

import contextlib
import copy
import dis
import inspect
import io
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType
from typing import Any

import numpy as np
import torch

SECONDS = 5.0  # for one call; the exercises need milliseconds
_PATIENCE = 6  # how many times that by the clock, for an answer that waits instead of working
_AGAIN = 0.2  # seconds until a time-out that the answer swallowed is raised again
_LONGEST = 300  # characters of an error's own text


@dataclass(frozen=True)
class Failure:
    """Why there is no result."""

    reason: str


class _TimeOutError(BaseException):
    """Not an `Exception`, so that an answer's `except Exception` does not swallow it."""


def run(call: Callable[..., Any], inputs: Any = (), *, seconds: float | None = None, quiet: bool = False) -> Any:
    """`call(inputs)`, or a `Failure`.

    Args:
        call: runs the answer on a copy of the inputs.
        inputs: what the answer is given, in one object (a tuple, a dict, ...); it must not change them.
        seconds: limit of computing time, by default `SECONDS`. It holds in the main thread of a Unix system.
        quiet: swallow what the answer prints.
    """
    seconds = SECONDS if seconds is None else seconds
    given = copy.deepcopy(inputs)
    try:
        with _limit(seconds), _settings_kept(), _muted(quiet):
            value = _inside(call, given)
    except KeyboardInterrupt:  # the learner's own stop button
        raise
    except _TimeOutError:
        return Failure(
            f"it was still running after {seconds:g} seconds and was stopped. Is there a loop that never ends, or a "
            "Python loop over every number of a tensor?"
        )
    except SystemExit:
        return Failure("it tries to end the program; return a value instead")
    except NotImplementedError:
        return Failure("it raises NotImplementedError: a part is not written yet")
    except BaseException as error:
        return Failure(f"it raises {type(error).__name__}: {_said(error)}{_where(error)}")
    if not same(inputs, given):
        return Failure(
            "it changes its input. Operations that end in _ and assignments such as x[...] = y write into the object "
            "that was handed in; work on a new one, or on x.clone()"
        )
    return value


def same(a: Any, b: Any) -> bool:
    """Whether two inputs are equal, element for element (NaN equals NaN). What we cannot look into counts as equal."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return bool(torch.equal(a, b) or ((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.nn.Module):
        return a.training == b.training and same(dict(a.state_dict()), dict(b.state_dict()))
    if isinstance(a, (int, float, str, bytes, set)):
        return bool(a == b or (a != a and b != b))
    return True


# What an empty body is compiled to. Python 3.11 to 3.13 name these operations so; a name that is not listed here, of
# whichever version, makes an answer count as written, and the checker then says what is wrong with it.
_EMPTY = {"RESUME", "CACHE", "NOP", "POP_TOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE"}
_NOT_WRITTEN = _EMPTY | {"LOAD_GLOBAL", "PUSH_NULL", "PRECALL", "CALL", "RAISE_VARARGS"}


def is_stub(answer: Any) -> bool:
    """Whether a function is still empty: nothing but a docstring, `...`, `pass`, `return None`, NotImplementedError.

    Read from the compiled code, so that comments and the place where it was defined do not matter. A class is a stub
    when each method that it defines is one, except `__init__`.
    """
    if isinstance(answer, type):
        methods = [getattr(value, "__func__", value) for name, value in vars(answer).items() if name != "__init__"]
        methods = [method for method in methods if isinstance(method, FunctionType)]
        return bool(methods) and all(map(is_stub, methods))
    if not isinstance(answer, FunctionType):
        return False
    code = getattr(inspect.unwrap(answer), "__code__", None)  # below decorators such as @torch.no_grad()
    if not isinstance(code, CodeType):
        return False
    operations = list(dis.get_instructions(code))
    names = {operation.opname for operation in operations}
    if code.co_names == ("NotImplementedError",):
        return names <= _NOT_WRITTEN
    constants = [operation.argval for operation in operations if operation.opname in ("LOAD_CONST", "RETURN_CONST")]
    return names <= _EMPTY and all(constant is None or constant is ... for constant in constants)


def _inside(call: Callable[..., Any], given: Any) -> Any:
    return call(given)


def _is_inside(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is _inside.__code__:
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    began, began_cpu = time.monotonic(), time.process_time()

    def stop(signum: int, frame: FrameType | None) -> None:
        # The limit is on the work of this process: on a busy machine a right answer may wait for its turn for long.
        # An answer that only sleeps does no work, and is stopped by the clock.
        worked, waited = time.process_time() - began_cpu, time.monotonic() - began
        if (worked >= 0.9 * seconds or waited >= _PATIENCE * seconds) and _is_inside(frame):  # not while we clean up
            raise _TimeOutError

    old_handler = signal.signal(signal.SIGALRM, stop)
    old_timer = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)  # again: a bare `except:` may have caught it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if old_handler is None else old_handler)
        signal.setitimer(signal.ITIMER_REAL, *old_timer)


@contextlib.contextmanager
def _settings_kept() -> Iterator[None]:
    """What an answer must not change for the cells that follow."""
    drawn, drawn_by_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    dtype, grad, threads = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(drawn)
        np.random.set_state(drawn_by_numpy)  # noqa: NPY002
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@contextlib.contextmanager
def _muted(quiet: bool) -> Iterator[None]:
    if not quiet:
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _said(error: BaseException) -> str:
    """The text of an error in one line of bearable length; an error of the learner's own may not even have one."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        return "(without a readable text)"
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."


def _where(error: BaseException) -> str:
    """ " (line 3 of your cell: x = q @ k)": the deepest line of the cell that holds the answer."""
    frames = traceback.extract_tb(error.__traceback__)
    cells = [frame.filename for frame in frames if "ipykernel_" in frame.filename or "<ipython-input" in frame.filename]
    own = [frame for frame in frames if cells and frame.filename == cells[0]]
    if not own or not own[-1].line:
        return ""
    return f" (line {own[-1].lineno} of your cell: {own[-1].line})"
