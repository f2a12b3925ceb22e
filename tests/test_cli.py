"""The `dsv3-mini` command: exit codes, messages, JSON, and what happens to text on its way to the terminal."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dsv3_mini import cli
from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("lab", "train", "generate", "eval", "params", "progress", "doctor")
STEPS, SEED = 3, 5


def shell(*arguments: str | Path, **more) -> subprocess.CompletedProcess[str]:
    """The command as a program of its own, in a folder where the checkout is not the current one."""
    command = [sys.executable, "-m", "dsv3_mini.cli", *map(str, arguments)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=300, **more)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that must be refused: exit code 2, nothing on stdout, one message. Gives the message."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err and printed.err.count("\n") == 1
    return printed.err


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small files, some of which end up held out."""
    folder = tmp_path_factory.mktemp("text")
    for n in range(40):
        lines = [f"def f{n}_{i}(x):\n    return x * {i} + {n}  # naïve, but déjà vu\n" for i in range(30)]
        (folder / f"module_{n}.py").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run_folder(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nano run of a few steps, made by the command itself."""
    run = tmp_path_factory.mktemp("runs") / "first run"  # with a space: folders of people have them
    done = shell("train", "--out", run, "--text", text, "--steps", STEPS, "--seed", SEED, "--seq-len", 64,
                 "--batch-tokens", 256, "--device", "cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{STEPS} steps" in done.stdout and "bits per byte" in done.stdout and "xz" in done.stdout
    assert f"dsv3-mini generate '{run}'" in done.stdout
    return run


# ---- help and usage


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS), ["--version"], ["params"],
                                       ["progress"]])  # fmt: skip
def test_help_and_params_do_not_import_torch(arguments: list[str]) -> None:
    code = f"""
import sys
from dsv3_mini.cli import main
try:
    main({arguments})
finally:
    heavy = {{"torch", "numpy", "transformers", "jupyter_client"}} & set(sys.modules)
    assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80", "DSV3_PROGRESS": "nothing.json"},
    )
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_help_lists_every_command_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n    {name} " in printed


@pytest.mark.parametrize("arguments", [[], ["fly"], ["train"], ["train", "--out", "x", "--steps", "many"], ["eval"],
                                       ["train", "--out", "x", "--text", "a", "--dataset", "b"]])  # fmt: skip
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert "usage: dsv3-mini" in capsys.readouterr().err


# ---- exit codes


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (InputError("field = 3 cannot be"), 2, "dsv3-mini params: field = 3 cannot be"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(
    raised: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: object) -> int:
        raise raised

    monkeypatch.setattr(cli.importlib, "import_module", lambda name: SimpleNamespace(run=run))
    assert cli.main(["params"]) == code
    assert capsys.readouterr().err.strip() == said


def test_a_bug_keeps_its_traceback() -> None:
    code = "import dsv3_mini.commands.params as p, dsv3_mini.cli as c; p.run = lambda args: 1 / 0; c.main(['params'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr


def test_a_closed_pipe_is_no_error() -> None:
    command = f"'{sys.executable}' -m dsv3_mini.cli params v3-671b | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "0" and done.stderr == ""


# ---- params


def test_params_of_v3(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["params", "v3-671b"]) == 0
    printed = capsys.readouterr().out
    for number in ("671,026,419,200", "37,552,297,472", "653,908,770,816", "36.63 B", "11,610,068,224", "70,272"):
        assert number in printed
    assert cli.main(["params", "v3-671b", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["total"] == sum(row["total"] for row in report["components"]) == 671_026_419_200
    assert report["active"] - report["active_without_embedding"] == 926_679_040
    assert report["cache_bytes_per_token"] == 70_272 and report["mtp"]["total"] == 11_610_068_224


def test_params_without_a_name_gives_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["params"]) == 0
    assert "671.03 B" in capsys.readouterr().out
    assert cli.main(["params", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["presets"]) == ["nano", "mini", "small", "v3-671b"]


def test_params_of_a_folder(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = run_folder / "checkpoints" / f"step-{STEPS:06d}"
    reports = []
    for name in (run_folder, checkpoint):
        assert cli.main(["params", str(name), "--json"]) == 0
        reports.append({**json.loads(capsys.readouterr().out), "model": ""})
    assert reports[0] == reports[1]
    vocabulary = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    embedding = next(row for row in reports[0]["components"] if row["name"] == "input embedding")
    assert embedding["total"] == vocabulary * ModelConfig.preset("nano").hidden_size


def test_params_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "neither a preset (nano, mini, small, v3-671b) nor a folder" in fails(capsys, "params", "mega")
    assert str(tmp_path) in fails(capsys, "params", tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json is not JSON" in fails(capsys, "params", tmp_path)


# ---- train


def test_train_leaves_metrics_and_checkpoints(run_folder: Path) -> None:
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert {"losses", "lr", "grad_norm", "maxvio", "tokens_per_s"} <= lines[0].keys()
    assert (run_folder / "checkpoints" / f"step-{STEPS:06d}" / "config.json").is_file()


def test_second_run_into_a_folder_is_refused_and_resume_continues_it(
    run_folder: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(capsys, "train", "--out", run_folder, "--text", text, "--steps", 2)
    assert str(run_folder) in message and "--resume" in message
    # Preset, seed and steps are those of the run; nobody has to say them again.
    assert cli.main(["train", "--out", str(run_folder), "--resume"]) == 0
    assert "nothing to train" in capsys.readouterr().err
    assert "seed" in fails(capsys, "train", "--out", run_folder, "--resume", "--seed", SEED + 1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--preset", "v3-671b"], "nano, mini, small"),
        (["--steps", "0"], "steps = 0"),
        (["--lr", "-1"], "lr = -1.0"),
        (["--text", "no/such/folder"], "no/such/folder"),
        (["--device", "tpu"], "device = 'tpu'"),
        (["--resume"], "new"),
    ],
)
def test_train_refuses_what_cannot_be(
    arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "new"
    assert named in fails(capsys, "train", "--out", run, *arguments)
    assert not run.exists(), "something was written"


def test_ctrl_c_in_training_says_how_to_go_on(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "long"
    command = [sys.executable, "-m", "dsv3_mini.cli", "train", "--out", run, "--text", text, "--steps", "100000",
               "--seq-len", "64", "--batch-tokens", "256", "--device", "cpu", "--checkpoint-every", "1"]  # fmt: skip
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(run.glob("checkpoints/step-*/config.json")):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--out {run} --resume" in err and "Traceback" not in err


# ---- generate


def generated(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict:
    assert cli.main(["generate", *map(str, arguments), "--json", "--max-new-tokens", "20"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1 and printed.err == ""
    return json.loads(printed.out)


def test_generate_streams_what_json_reports(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [run_folder, "--prompt", "def café(", "--seed", "7", "--device", "cpu"]
    report = generated(capsys, *arguments)
    assert (
        report["prompt"] == "def café("
        and 0 < report["new_tokens"] == len(report["tokens"]) <= 20
        and not report["interrupted"]
    )
    assert cli.main(["generate", *map(str, arguments), "--max-new-tokens", "20"]) == 0
    assert capsys.readouterr().out == report["prompt"] + report["text"] + "\n"
    assert generated(capsys, *arguments)["text"] == report["text"], "the same seed gives the same text"


def test_generate_takes_settings_seriously(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tokens(*settings: object) -> list[int]:
        return generated(capsys, run_folder, *map(str, settings))["tokens"]

    sampled = [tokens("--temperature", 1, "--top-p", 1, "--seed", seed) for seed in (1, 2)]
    assert sampled[0] != sampled[1]
    likeliest = [tokens("--temperature", 0, "--seed", seed) for seed in (1, 2)]
    assert likeliest[0] == likeliest[1], "temperature 0 leaves nothing to chance"


def test_generate_reads_the_prompt_from_standard_input(run_folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("naïve\n".encode())))
    assert generated(capsys, run_folder, "--prompt", "-")["prompt"] == "naïve\n"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"ok\xff")))
    assert "not UTF-8" in fails(capsys, "generate", run_folder, "--prompt", "-")


def test_generate_refuses_what_cannot_be(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no-such" in fails(capsys, "generate", tmp_path / "no-such")
    long = fails(capsys, "generate", run_folder, "--prompt", "1 " * 5000, "--json")
    assert "context" in long
    assert "temperature" in fails(capsys, "generate", run_folder, "--temperature", -1, "--json")
    assert "top_p" in fails(capsys, "generate", run_folder, "--top-p", 0, "--json")


def test_ctrl_c_keeps_what_was_generated(run_folder: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    import dsv3_mini.generate.decode as decode

    def stopped(model, tokens, max_new_tokens, *, on_token, **settings):
        for token in (100, 101):
            on_token([token])
        raise KeyboardInterrupt

    monkeypatch.setattr(decode, "generate", stopped)
    assert cli.main(["generate", str(run_folder), "--json"]) == 130
    report = json.loads(capsys.readouterr().out)
    assert report["interrupted"] and report["new_tokens"] == 2 and report["text"]


def test_drafts_change_the_speed_and_not_the_text(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = generated(capsys, run_folder, "--prompt", "def f(", "--temperature", "0")
    drafted = generated(capsys, run_folder, "--prompt", "def f(", "--temperature", "0", "--speculative", "3")
    assert drafted["tokens"] == plain["tokens"] and "speculation" not in plain
    assert 0 < drafted["speculation"]["forward_passes"] < 20
    assert drafted["speculation"]["accepted"] <= drafted["speculation"]["drafted"]
    assert cli.main(["generate", str(run_folder), "--speculative", "--stats", "--max-new-tokens", "9"]) == 0
    told = capsys.readouterr().err
    assert "forward passes" in told and "tokens per second" in told and "accepted, by depth" in told
    assert "cannot be" in fails(capsys, "generate", run_folder, "--speculative", 99, "--json")
    assert "confidence" in fails(capsys, "generate", run_folder, "--confidence", 2, "--speculative", "--json")


def test_yarn_extends_the_context(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = ["--prompt", "1 " * 5000]
    refused = fails(capsys, "generate", run_folder, *long, "--json")
    assert "4096" in refused and "--yarn" in refused
    assert generated(capsys, run_folder, *long, "--yarn", 400)["prompt_tokens"] > 4096
    assert "--yarn 0.5" in fails(capsys, "generate", run_folder, "--yarn", 0.5, "--json")


def test_interactive_goes_on_from_what_is_there(run_folder: Path, monkeypatch, capsys) -> None:
    lines = iter(["\n", "def f(\n", "\n", "+ x = 1\\n\n", ""])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(readline=lambda: next(lines)))
    arguments = ["generate", str(run_folder), "--interactive", "--max-new-tokens", "5", "--temperature", "0", "--stats"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("def f(") and "\nx = 1\n" in printed.out
    assert printed.err.count("prompt: ") == 3, "the first empty line had nothing to continue"
    assert "from the cache" in printed.err
    assert "exclude each other" in fails(capsys, "generate", run_folder, "--interactive", "--json")


def test_interactive_survives_bad_input_and_ctrl_c(run_folder: Path, monkeypatch, capsys) -> None:
    def answers():
        yield "1 " * 5000 + "\n"
        raise KeyboardInterrupt

    lines = [answers(), iter(["def f(\n", ""])]

    def readline() -> str:
        try:
            return next(lines[0])
        except KeyboardInterrupt:
            lines.pop(0)
            raise

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(readline=readline))
    assert cli.main(["generate", str(run_folder), "--interactive", "--max-new-tokens", "3"]) == 0
    printed = capsys.readouterr()
    assert "more than the context" in printed.err and "Ctrl-D ends" in printed.err
    assert "def f(" in printed.out


class Bytes:
    """A tokenizer whose tokens are single bytes."""

    def decode_bytes(self, ids: list[int]) -> bytes:
        return bytes(ids)


def test_characters_cut_by_tokens_wait_for_their_rest(capsys: pytest.CaptureFixture[str]) -> None:
    from dsv3_mini.commands.generate import _Screen

    screen = _Screen(Bytes(), quiet=False)
    shown = []
    for byte in "aé€😀".encode():
        screen.add(byte)
        shown.append(capsys.readouterr().out)
    assert shown == ["a", "", "é", "", "", "€", "", "", "", "😀"]
    screen.add("€".encode()[0])
    screen.end()  # a character that never gets its rest
    assert capsys.readouterr().out == "\ufffd\n"


def test_control_characters_do_not_reach_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from dsv3_mini.commands.generate import _Screen

    text = "a\x1b[2Jb\n\tc\x9b\x7f"
    screen = _Screen(Bytes(), quiet=False)
    screen.show(text)
    assert capsys.readouterr().out == text, "a file gets what was generated"
    screen.to_terminal = True
    screen.show(text)
    assert capsys.readouterr().out == "a␛[2Jb\n\tc\ufffd␡"


# ---- eval


def test_eval_reports_model_and_baselines(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(run_folder), "--json", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"bits_per_byte", "ngram", "xz"} <= report.keys()
    assert report["bits_per_byte"].keys() == report["ngram"].keys() == report["xz"].keys()
    assert 0 < report["ngram"]["all"] < 8 and 0 < report["bits_per_byte"]["all"] < 20
    assert cli.main(["eval", str(run_folder)]) == 0
    printed = capsys.readouterr().out
    assert f"{report['bits_per_byte']['all']:.3f}" in printed and f"{report['xz']['all']:.3f}" in printed


def test_eval_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(tmp_path) in fails(capsys, "eval", tmp_path)


# ---- progress


@pytest.fixture
def progress_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSV3_PROGRESS", str(tmp_path / "progress.json"))
    return tmp_path / "progress.json"


@pytest.fixture
def two_lessons(monkeypatch: pytest.MonkeyPatch) -> None:
    """A course of two lessons and one that is not written yet."""
    import dsv3_mini.commands.progress as command
    from dsv3_mini.course.lessons import Asked

    asked = {
        "00": Asked({"0.1": "Count tokens", "0.2": "Count bytes"}, ("0.p1", "0.p2"), {"0.A": "A bug"}),
        "01": Asked({"1.1": "Merge heads"}, ("1.p1",), {"1.A": "A bug", "1.B": "Another"}),
        "02": Asked({}, (), {}),
    }
    lessons = [SimpleNamespace(number=n, title=f"Lesson {n}", asks=lambda n=n: asked[n]) for n in asked]
    monkeypatch.setattr(command, "LESSONS", lessons)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["progress", *arguments]) == 0
    return capsys.readouterr().out


def test_progress_of_somebody_new_says_how_to_begin(progress_file: Path, two_lessons: None, capsys) -> None:
    assert "dsv3-mini lab" in told(capsys)
    assert not progress_file.exists()


def test_progress_by_lesson_and_what_is_open(progress_file: Path, two_lessons: None, capsys) -> None:
    from dsv3_mini.course import progress

    progress.record_exercise("0.1", right=True, hints=2)
    progress.record_exercise("0.2", right=False)
    progress.record_prediction("0.p1", guess="a", right=True)
    progress.record_prediction("0.p2", guess="a", right=False)
    progress.record_exhibit("0.A")
    lines = told(capsys).splitlines()
    assert lines[1].split() == "00 Lesson 00 1 of 2 2 1 of 2 1 of 1".split()
    assert lines[2].split() == "01 Lesson 01 0 of 1 0 of 1 0 of 2".split()
    assert lines[4:6] == ["Open:", "  0.2 Count bytes (1 try)"]
    assert str(progress_file) in lines[-1] and "02" not in "".join(lines[:5])

    progress.record_exercise("0.2", right=True)
    assert "  1.1 Merge heads\n" in told(capsys), "the next lesson, when all is right in those that were begun"
    progress.record_exercise("1.1", right=True)
    assert "Every exercise is right." in told(capsys)


def test_progress_as_json(progress_file: Path, two_lessons: None, capsys) -> None:
    from dsv3_mini.course import progress

    progress.record_exercise("1.1", right=False, solution_shown=True)
    report = json.loads(told(capsys, "--json"))
    assert report["file"] == str(progress_file)
    assert [lesson["lesson"] for lesson in report["lessons"]] == ["00", "01", "02"]
    lesson = report["lessons"][1]
    assert lesson["exercises"] == [
        {"id": "1.1", "title": "Merge heads", "state": "wrong", "tries": 1, "hints": 0, "solution_shown": True}
    ]
    assert (lesson["right"], lesson["predictions"], lesson["exhibits"], lesson["exhibits_seen"]) == (0, 1, 2, 0)


def test_progress_never_fails_and_prints_nothing_of_an_odd_file(
    progress_file: Path, two_lessons: None, capsys, monkeypatch
) -> None:
    from dsv3_mini.course import progress

    for content in (b"{", b'{"schema": 99}', b"\xff"):
        monkeypatch.setattr(progress, "_told", set())
        progress_file.write_bytes(content)
        assert cli.main(["progress", "--json"]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)["lessons"] and str(progress_file) in printed.err
    entry = {"state": "\x1b[2J", "tries": "\x1b[2J", "hints": None}
    odd = {"\x1b[2J": entry, "0.1": entry}
    progress_file.write_text(json.dumps({"schema": 1, "exercises": odd, "predictions": odd, "exhibits": odd}))
    shown = told(capsys)
    assert "\x1b" not in shown and "  0.1 Count tokens" in shown


def test_progress_of_the_course_itself(progress_file: Path, capsys) -> None:
    report = json.loads(told(capsys, "--json"))
    assert len(report["lessons"]) == 19
    assert any(lesson["exercises"] for lesson in report["lessons"])
