"""A training run to look at while it trains: `Dashboard(cfg)` at the end of a cell, and `dashboard.start()`.

The run trains in a thread of its own, so that the notebook stays free and the Stop button is heard. Stopping is clean:
the step is finished, a checkpoint is saved, and *Continue* (or `start()` again, or the command line with `--resume`)
goes on from there. `Dashboard(run=folder)` shows a run that is there already.

What is drawn comes from `run_view`; a picture and the same in words travel beside the widget, for notebooks that are
read without a kernel.
"""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import json
import math
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import traitlets

from dsv3_mini.errors import InputError
from dsv3_mini.train import run_folder
from dsv3_mini.train.config import TrainConfig
from dsv3_mini.train.metrics import read_metrics
from dsv3_mini.train.routing_log import ROUTING_FILE
from dsv3_mini.viz.picture import Picture
from dsv3_mini.viz.run_picture import draw_run
from dsv3_mini.viz.run_view import RunView, run_view
from dsv3_mini.viz.still_widget import StillWidget

if TYPE_CHECKING:
    from dsv3_mini.train.loop import TrainResult

INTERVAL = 0.25  # seconds between two updates of the browser
_SHARE = 0.05  # of the time, at most, is spent on updates
_FAREWELL = 5.0  # seconds a run gets to stop when Python ends

# state: (what is said, what the button does, or "" for no button)
STATES = {
    "ready": ("not started", "Start"),
    "preparing": ("preparing the text and the model", "Stop"),
    "running": ("training", "Stop"),
    "stopping": ("stopping after this step, with a checkpoint", ""),
    "measuring": ("all steps done; measuring on held-out text", ""),
    "stopped": ("stopped, saved", "Continue"),
    "finished": ("finished", ""),
    "failed": ("ended by an error", "Continue"),
    "kept": ("a run from its folder", ""),
}


class Dashboard(StillWidget):
    """Watch a training run, and stop it.

    Args:
        cfg: the run to be trained; it begins with `start()` or the button.
        run: instead, the folder of a run that is there; `refresh()` reads it again.

    Attributes:
        result: what `train` gave, when the run has stopped or finished; else None.
        records: the lines of `metrics.jsonl` so far.

    Raises:
        InputError: when not exactly one of the two is given, or `run` holds no run.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")

    state = traitlets.Unicode("ready").tag(sync=True)  # a key of STATES
    message = traitlets.Unicode("").tag(sync=True)  # what went wrong, or where the run is
    _title = traitlets.Unicode("").tag(sync=True)
    _states = traitlets.Dict(STATES).tag(sync=True)
    _shown: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)  # a RunView as plain JSON

    def __init__(self, cfg: TrainConfig | None = None, *, run: str | Path | None = None) -> None:
        if (cfg is None) == (run is None):
            raise InputError("give Dashboard either cfg, a run to train, or run, the folder of one to look at")
        super().__init__()
        self.cfg = cfg
        self.folder = Path(run) if cfg is None else cfg.out  # type: ignore[arg-type]
        self._title = self.folder.name
        self._settings: dict[str, Any] = cfg.resolved().to_json() if cfg is not None else {}
        self.records: list[dict[str, Any]] = []
        self.result: TrainResult | None = None
        self.view = RunView()
        self._error: Exception | None = None
        self._snapshots = _Snapshots(self.folder)
        self._stop = threading.Event()
        self._ended: threading.Event | None = None  # of the run that was started; None before
        self._turn = threading.RLock()  # notebook, button and training each have a thread of their own
        self._next_look = 0.0
        if cfg is None:
            self.state = "kept"
            self.refresh()
        else:
            self._look()
        self.on_msg(self._pressed)

    def start(self) -> None:
        """Begin to train, in a thread of its own; or continue what was stopped. Returns at once.

        Raises `InputError` when there is nothing to train. What goes wrong later is said in the widget and raised by
        `wait`. Training draws its first weights with torch's random generator, which the notebook shares.
        """
        from dsv3_mini.train.loop import train

        with self._turn:
            if self.cfg is None:
                raise InputError("this dashboard shows a run that is there already; to train, give it a TrainConfig")
            if self.state == "finished":
                raise InputError(f"{self.folder} has all of its {self._settings['steps']} steps already")
            if self._ended is not None and not self._ended.is_set():
                return
            begun = self.state in ("stopped", "failed") and (self.folder / run_folder.RUN_FILE).exists()
            cfg = dataclasses.replace(self.cfg, resume=True) if begun else self.cfg
            if cfg.resume:
                self.records = read_metrics(self.folder)
            self._stop, self._ended, self._error, self.result = threading.Event(), threading.Event(), None, None
            self._snapshots = _Snapshots(self.folder)  # a run that is continued may cut its files back
            self.message, self.state = "", "preparing"
            threading.Thread(target=self._work, args=(train, cfg, self._stop, self._ended), daemon=True).start()

    def stop(self) -> None:
        """Ask the run to stop after its step, with a checkpoint. Returns at once; `wait()` waits for it."""
        with self._turn:
            if self.state in ("preparing", "running"):
                self._stop.set()
                self.state = "stopping"

    def wait(self, seconds: float | None = None) -> TrainResult | None:
        """Wait for the end of the run, at most `seconds`; gives its result, or None while it still trains.

        Raises the error that ended the run, and `InputError` when none was started. While a cell waits so, the kernel
        does not hear the button; interrupting the kernel stops the run as the button does.
        """
        ended = self._started()
        try:
            ended.wait(seconds)
        except KeyboardInterrupt:
            self.stop()
            ended.wait()
        return self._outcome(ended)

    async def until_end(self, seconds: float | None = None) -> TrainResult | None:
        """`wait` for notebooks, `await dashboard.until_end(60)`: the kernel hears the button while the cell waits."""
        ended, deadline = self._started(), time.monotonic() + (math.inf if seconds is None else seconds)
        try:
            while not ended.is_set() and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
        except (KeyboardInterrupt, asyncio.CancelledError):
            self.stop()
            ended.wait()
        return self._outcome(ended)

    def _started(self) -> threading.Event:
        if self._ended is None:
            raise InputError("no run was started from this dashboard; call start() first")
        return self._ended

    def _outcome(self, ended: threading.Event) -> TrainResult | None:
        if not ended.is_set():
            return None
        if self._error is not None:
            raise self._error
        return self.result

    def refresh(self) -> None:
        """Read the run's folder again."""
        if self.cfg is None or self.state == "ready":
            self._settings = run_folder.read_run(self.folder)["config"]
            self.records = read_metrics(self.folder)
            self.message, self._snapshots = _measured(self.folder), _Snapshots(self.folder)
        self._look()

    def summary(self) -> str:
        """What is shown, in words."""
        said = STATES[self.state][0]
        return "\n".join(filter(None, [f"Run {self._title}: {said}. {self.message}".strip(), self.view.words()]))

    def picture(self) -> Picture | None:
        """The charts as a picture that stands still; None before the first step."""
        return draw_run(self.view)

    # -- in the thread of the training --

    def _work(self, train: Any, cfg: TrainConfig, stop: threading.Event, ended: threading.Event) -> None:
        atexit.register(self._end_with_python)
        try:
            self.result = train(cfg, progress=False, on_step=self._after_step, should_stop=stop.is_set)
            state, message = ("stopped" if self.result.stopped else "finished"), _measured(self.folder)
        except Exception as error:
            self._error, state = error, "failed"
            message = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        finally:
            atexit.unregister(self._end_with_python)
        with self._turn:
            try:
                self._look()
            finally:  # whoever waits must not wait for ever
                self.message, self.state = message, state
                ended.set()

    def _after_step(self, record: dict[str, Any]) -> None:
        if not self.records or record["step"] != self.records[-1]["step"] + 1:
            # A continued run goes on from its checkpoint; lines beyond it are not part of it.
            self.records = [earlier for earlier in self.records if earlier["step"] < record["step"]]
            self._settings = run_folder.read_run(self.folder)["config"]
        self.records.append(record)
        done, now = record["step"] == self._settings["steps"], time.monotonic()
        with self._turn:
            if not self._stop.is_set():
                self.state = "measuring" if done else "running"
        if done or now >= self._next_look:
            self._look()
            self._next_look = now + max(INTERVAL, (time.monotonic() - now) / _SHARE)

    def _end_with_python(self) -> None:
        """Without this, the end of Python would cut the thread off in the middle of a step."""
        self._stop.set()
        if self._ended is not None:
            self._ended.wait(_FAREWELL)

    # -- what the browser gets, and what comes from there --

    def _look(self) -> None:
        with self._turn:
            self.view = run_view(self._settings, self.records, self._snapshots.until(self.records))
            self._shown = dataclasses.asdict(self.view)

    def _pressed(self, _: Any, content: Any, buffers: Any) -> None:
        """The button. It is no cell, so what it cannot do is said in the widget."""
        try:
            {"stop": self.stop, "start": self.start}.get(content.get("ask"), lambda: None)()
        except InputError as error:
            self.message = str(error)


class _Snapshots:
    """The routing snapshots of a folder, read as they are added."""

    def __init__(self, folder: Path) -> None:
        self.path, self.place, self.lines = folder / ROUTING_FILE, 0, list[dict[str, Any]]()

    def until(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those up to the step of the last record."""
        if self.path.is_file():
            with open(self.path, "rb") as file:
                file.seek(self.place)
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self.place += len(whole)
            self.lines += [json.loads(line) for line in whole.splitlines()]
        last = records[-1]["step"] if records else 0
        return [line for line in self.lines if line["step"] <= last]


def _measured(folder: Path) -> str:
    """What the measurement at the end of a run found, in words; "" for a run that has none."""
    path = folder / "evaluation.json"
    if not path.is_file():
        return ""
    bits = json.loads(path.read_text(encoding="utf-8"))["bits_per_byte"]
    found = ", ".join(f"{domain} {value:.3f}" for domain, value in bits.items())
    return f"Held-out bits per byte at the end: {found}."
