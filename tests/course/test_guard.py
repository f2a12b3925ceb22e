"""What a learner's code may do to us, and that the notebook goes on."""

from __future__ import annotations

import functools
import random
import signal
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dsv3_mini.course import guard
from dsv3_mini.course.guard import Failure, is_stub, run, same


def reason(call: Any, inputs: Any = (), **more: Any) -> str:
    result = run(call, inputs, **more)
    assert isinstance(result, Failure), result
    return result.reason


# ---- errors


def test_a_value_comes_back_as_it_is() -> None:
    value = object()
    assert run(lambda _: value) is value
    assert run(lambda inputs: inputs[0] + 1, (torch.ones(2),)).tolist() == [2, 2]


def test_an_error_is_a_reason_with_its_text() -> None:
    assert reason(lambda _: 1 / 0) == "it raises ZeroDivisionError: division by zero"
    assert reason(lambda _: {}["key"]) == "it raises KeyError: 'key'"


def recurse(inputs: Any) -> Any:
    return recurse(inputs)


def raising(error: BaseException) -> Any:
    def call(_: Any) -> None:
        raise error

    return call


class _OwnError(BaseException):
    pass


class _MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda _: sys.exit(3), "end the program"),
        (raising(SystemExit()), "end the program"),
        (recurse, "RecursionError"),
        (raising(_OwnError("mine")), "_OwnError: mine"),
        (raising(_MuteError()), "without a readable text"),
        (raising(NotImplementedError()), "not written yet"),
        (raising(ValueError("a\n\nb" + "x" * 5000)), "a b"),
    ],
)
def test_whatever_is_raised_is_a_reason(call: Any, word: str) -> None:
    said = reason(call)
    assert word in said and "\n" not in said and len(said) < 400


def test_a_stop_by_the_learner_is_none_of_ours() -> None:
    with pytest.raises(KeyboardInterrupt):
        run(raising(KeyboardInterrupt()))


# ---- endless answers


def endless(_: Any) -> None:
    while True:
        pass


def endless_and_stubborn(_: Any) -> None:
    """Catches whatever would stop it, a few times."""
    for _ in range(3):
        try:
            while True:
                pass
        except:  # noqa: E722
            continue


def endless_at_the_end(_: Any) -> None:
    try:
        while True:
            pass
    finally:
        while True:
            pass


@pytest.mark.parametrize("call", [endless, endless_and_stubborn, endless_at_the_end])
def test_an_endless_answer_is_stopped(call: Any) -> None:
    if call is endless_and_stubborn:  # it ends by itself; what counts is that each try was interrupted
        assert run(call, seconds=0.1) is None
    else:
        assert "still running after 0.1 seconds" in reason(call, seconds=0.1)


def test_the_limit_is_on_work_and_the_clock_has_more_patience() -> None:
    """On a busy machine a right answer may wait long for its turn."""
    assert run(lambda _: time.sleep(0.3) or "done", seconds=0.1) == "done"
    assert "still running" in reason(lambda _: time.sleep(30), seconds=0.1)


def test_handler_and_timer_are_put_back() -> None:
    mine = lambda *_: None  # noqa: E731
    old_handler = signal.signal(signal.SIGALRM, mine)
    old_timer = signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        for call in (endless, lambda _: 1, raising(ValueError())):
            run(call, seconds=0.05)
            assert signal.getsignal(signal.SIGALRM) is mine
            assert 900 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000
    finally:
        signal.signal(signal.SIGALRM, old_handler)
        signal.setitimer(signal.ITIMER_REAL, *old_timer)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_no_alarm_rings_after_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cleaning up may take longer than the limit; the time-out belongs to the answer."""
    monkeypatch.setattr(guard, "_AGAIN", 0.01)
    settings_kept = guard._settings_kept

    @guard.contextlib.contextmanager
    def slowly() -> Any:
        with settings_kept():
            yield
        time.sleep(0.2)

    monkeypatch.setattr(guard, "_settings_kept", slowly)
    assert run(lambda _: "done", seconds=0.05) == "done"
    assert "still running" in reason(endless, seconds=0.05)


def test_it_works_off_the_main_thread() -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append((run(lambda _: 1), run(lambda _: 1 / 0))))
    thread.start()
    thread.join()
    assert results[0][0] == 1 and "ZeroDivisionError" in results[0][1].reason


# ---- inputs


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("count", torch.zeros(1))


def change_weight(inputs: Any) -> None:
    with torch.no_grad():
        inputs[0].weight.zero_()


CHANGES = {
    "tensor": (torch.ones(3), lambda x: x[0].zero_()),
    "masked": (torch.tensor([1.0, float("nan")]), lambda x: x[0].nan_to_num_()),
    "view": (torch.ones(2, 3), lambda x: x[0].t()[0].mul_(2)),
    "list": ([1, 2], lambda x: x[0].append(3)),
    "element": ([torch.ones(2), 1], lambda x: x[0].__setitem__(1, torch.ones(2))),
    "dict": ({"a": 1}, lambda x: x[0].update(b=2)),
    "nested": ({"a": [torch.ones(1)]}, lambda x: x[0]["a"][0].add_(1)),
    "array": (np.ones(3), lambda x: x[0].fill(0)),
    "set": ({1}, lambda x: x[0].add(2)),
    "module": (Layer(), change_weight),
    "mode": (Layer(), lambda x: x[0].eval()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_input_is_noticed_and_ours_stays(name: str) -> None:
    value, change = CHANGES[name]
    assert "changes its input" in reason(change, (value,))
    assert isinstance(run(lambda inputs: 1, (value,)), int), "an untouched input counts as changed"
    assert "changes its input" in reason(change, (value,)), "the first run has changed our own copy"
    assert "changes its input" in reason(lambda inputs: change((inputs["x"],)), {"x": value}), "by keyword"


def test_same_looks_inside() -> None:
    nan = float("nan")
    equal = [nan, torch.tensor([nan, 1]), [1, "a", None], {"x": (torch.ones(2),)}, np.array([nan]), {1, 2}, b"x"]
    for value in equal:
        assert same(value, guard.copy.deepcopy(value)), value
    unequal = [(1, 1.0), (torch.ones(2), torch.ones(2).double()), (torch.ones(2), torch.ones(1, 2)), ([1], [1, 2]),
               (torch.tensor([nan, 1]), torch.tensor([1, nan])), ({"a": 1}, {"b": 1}), (None, 0),
               ("a", "b")]  # fmt: skip
    for a, b in unequal:
        assert not same(a, b), (a, b)


# ---- settings and prints


def test_settings_are_put_back() -> None:
    def unruly(_: Any) -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_num_threads(3)
        raise ValueError

    def state() -> tuple[Any, ...]:
        numbers = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        return *numbers, torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()

    torch.manual_seed(7)
    random.seed(7)
    before = state()
    run(unruly)
    run(lambda _: (torch.randn(3), random.random(), np.random.rand()))  # noqa: NPY002
    assert state() == before


def test_random_numbers_are_the_same_for_answer_and_solution() -> None:
    assert torch.equal(run(lambda _: torch.randn(3)), run(lambda _: torch.randn(3)))


def test_what_an_answer_prints_is_shown_unless_it_is_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    def talks(_: Any) -> None:
        print("out")
        print("err", file=sys.stderr)

    run(talks)
    run(talks, quiet=True)
    assert capsys.readouterr() == ("out\n", "err\n")


# ---- stubs


def stub_dots(x):
    """Says what to do."""
    ...


def stub_pass(x, *, scale=1.0):
    pass


def stub_comment(*x, **more):
    # Your code here.
    return None


def stub_returns_dots(x):
    return ...


def stub_raises(x):
    raise NotImplementedError


def stub_raises_with_text(x):
    """Says what to do."""
    raise NotImplementedError("write me")


@torch.no_grad()
def stub_decorated(x): ...


class StubClass(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        """[B, T] -> [B, T]"""
        ...

    @staticmethod
    def helper(x): ...


STUBS = [stub_dots, stub_pass, stub_comment, stub_returns_dots, stub_raises, stub_raises_with_text, stub_decorated,
         StubClass, lambda x: None]  # fmt: skip


def written_constant(x):
    return 9


def written_none_after_work(x):
    x.sum()
    return


def written_local(x):
    y = None  # noqa: F841


def written_input(x):
    return x


def written_text(x):
    """said"""
    return "said"


def written_raise(x):
    raise ValueError


def written_partly(x):
    if x is None:
        return 1
    raise NotImplementedError


def written_generator(x):
    yield


def written_loop(x):
    while True:
        pass


class WrittenClass(StubClass):
    def forward(self, x):
        return x


class ClassWithoutMethods:
    pass


WRITTEN = [written_constant, written_none_after_work, written_local, written_input, written_text, written_raise,
           written_partly, written_generator, written_loop, WrittenClass, ClassWithoutMethods, lambda x: 0, len, 7,
           functools.partial(stub_dots, 1), nn.Linear(1, 1), "text", torch.ones(1)]  # fmt: skip


@pytest.mark.parametrize("answer", STUBS, ids=lambda answer: answer.__name__)
def test_what_is_empty_is_a_stub(answer: Any) -> None:
    assert is_stub(answer)


@pytest.mark.parametrize("answer", WRITTEN, ids=lambda answer: getattr(answer, "__name__", type(answer).__name__))
def test_what_was_written_is_none(answer: Any) -> None:
    assert not is_stub(answer)


# ---- places, in a real kernel


def test_an_error_names_the_line_of_the_learner_s_own_cell() -> None:
    import nbformat
    from nbclient import NotebookClient

    helper = "def helper(x):\n    return x @ x\n"
    answer = "# my answer\ndef answer(inputs):\n    y = inputs[0] + 1\n    return helper(y)\n"
    ask = "from dsv3_mini.course import guard\nimport torch\nprint(guard.run(answer, (torch.ones(2, 3),)).reason)"
    more = "print(guard.run(lambda _: exit(), ()))\nprint('still here')"
    cells = [nbformat.v4.new_code_cell(text) for text in (helper, answer, ask, more)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    said = notebook.cells[2].outputs[0].text
    assert "(line 4 of your cell: return helper(y))" in said and "RuntimeError" in said
    assert "still here" in notebook.cells[3].outputs[-1].text
