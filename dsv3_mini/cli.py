"""The `dsv3-mini` command: its arguments, and what its exit codes mean.

    0  done
    1  it did not work: `doctor` found something missing, a run diverged, or a bug (with its traceback)
    2  bad input: one message on standard error says what, and what would be right
    130, 143  stopped by Ctrl-C or SIGTERM; `train` has saved a checkpoint then and says how to continue

Nothing here imports torch: `--help` answers at once, and each command pays for what it uses.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import dsv3_mini
from dsv3_mini.config import PRESETS
from dsv3_mini.errors import InputError
from dsv3_mini.train.config import TRAIN_PRESETS

DESCRIPTION = "A tiny DeepSeek-V3 that is the real architecture: train it, talk to it, take it apart."
EPILOG = "Start with `dsv3-mini doctor` (is this machine ready?) and `dsv3-mini lab` (the lessons)."
INTERRUPTED = 130  # what shells give for Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code. Wrong usage leaves through argparse, with 2 as well."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows a question mark for it
    args = build_parser().parse_args(argv)
    try:
        code = importlib.import_module(f"dsv3_mini.commands.{args.module}").run(args)
        sys.stdout.flush()
        return code
    except InputError as error:
        print(f"dsv3-mini {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`). Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    """The whole grammar of the command line."""
    parser = argparse.ArgumentParser(prog="dsv3-mini", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"dsv3-mini {dsv3_mini.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    _add_lab(commands)
    _add_train(commands)
    _add_generate(commands)
    _add_eval(commands)
    _add_params(commands)
    _add_progress(commands)
    _add_doctor(commands)
    return parser


def _add(
    commands: argparse._SubParsersAction, name: str, module: str, line: str, epilog: str | None = None
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".", epilog=epilog)
    parser.set_defaults(module=module)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _add_device(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto: a GPU if there is one (default)")


def _add_lab(commands: argparse._SubParsersAction) -> None:
    lab = _add(commands, "lab", "lab", "open the lessons in JupyterLab, with the kernel of this environment")
    lab.add_argument("--port", type=int, metavar="N", help="port on 127.0.0.1 (default: the first free one from 8888)")
    browser = "print the address instead of opening a browser (without a screen that happens anyway)"
    lab.add_argument("--no-browser", action="store_true", help=browser)


def _add_train(commands: argparse._SubParsersAction) -> None:
    train = _add(
        commands,
        "train",
        "train",
        "train a model into a run folder, or continue a run",
        epilog="RUN gets metrics.jsonl (a line a step), evaluation.json, and checkpoints that transformers reads too.",
    )
    presets = ", ".join(TRAIN_PRESETS)
    train.add_argument("--preset", metavar="NAME", help=f"size of the model: {presets} (default: nano)")
    twin = "all layers dense, with as many active parameters, instead of the mixture of experts"
    train.add_argument("--dense-twin", action="store_true", help=twin)
    train.add_argument("--out", type=Path, metavar="RUN", required=True, help="the run folder, new unless --resume")
    train.add_argument("--resume", action="store_true", help="continue the run in RUN from its newest checkpoint")
    begin = "begin with the weights and tokenizer of this run or checkpoint folder: a short phase at one rate (§4.3)"
    train.add_argument("--init-from", type=Path, metavar="FOLDER", help=begin)
    factor = "with --init-from: switch YaRN on, for a context F times as long as the model was trained with"
    train.add_argument("--yarn-factor", type=float, metavar="F", help=factor)
    share = "share of the windows, 0 to 1, that hold planted lines and ask for them at the end (default: 0)"
    train.add_argument("--needle-share", type=float, metavar="P", help=share)
    text = train.add_mutually_exclusive_group()
    own = "a UTF-8 file, or a folder of them, instead of the embedded corpus"
    text.add_argument("--text", type=Path, metavar="PATH", help=own)
    text.add_argument("--dataset", metavar="NAME", help="a public dataset (needs the network and the extra `data`)")
    train.add_argument("--seed", type=int, metavar="S", help="of the weights and of the order of the data (default: 0)")
    _add_device(train)
    ways = "under torchrun: N processes share the experts of a layer, tokens travel (default: 1)"
    train.add_argument("--expert-parallel", type=int, metavar="N", help=ways)

    numbers = train.add_argument_group("instead of the preset's values")
    whole = {
        "--steps": "optimizer steps; all schedules scale with it",
        "--seq-len": "tokens in a sequence",
        "--batch-tokens": "tokens in an optimizer step",
        "--micro-batch-tokens": "tokens in the model at once: less of it needs less memory",
        "--checkpoint-every": "steps between checkpoints",
        "--eval-every": "steps between evaluations on held-out text (default: only at the end)",
    }
    for name, meaning in whole.items():
        numbers.add_argument(name, type=int, metavar="N", help=meaning)
    numbers.add_argument("--lr", type=float, metavar="RATE", help="peak learning rate")


def _add_generate(commands: argparse._SubParsersAction) -> None:
    generate = _add(commands, "generate", "generate", "continue a prompt with a trained model")
    folder = (
        "a run folder (its newest checkpoint) or a checkpoint folder (default: the model that comes with the course)"
    )
    generate.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help=folder)
    prompt = "the text to continue; - reads it from standard input (default: an empty page)"
    generate.add_argument("--prompt", default="", metavar="TEXT", help=prompt)
    generate.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="at most so many (default: 200)")
    temperature = "0 always takes the likeliest token; 1 samples as the model says (default: 0.7)"
    generate.add_argument("--temperature", type=float, default=0.7, metavar="T", help=temperature)
    top_p = "sample from the likeliest tokens that together have this probability (default: 0.95)"
    generate.add_argument("--top-p", type=float, default=0.95, metavar="P", help=top_p)
    generate.add_argument("--seed", type=int, metavar="S", help="makes sampling repeatable")
    drafts = (
        "draft N tokens at a time with the MTP module (default without N: 2); the text stays the same, it comes sooner"
    )
    generate.add_argument("--speculative", type=int, nargs="?", const=2, default=0, metavar="N", help=drafts)
    sure = "stop drafting where the drafts so far are less likely than this (default: 0, never)"
    generate.add_argument("--confidence", type=float, default=0.0, metavar="P", help=sure)
    generate.add_argument("--yarn", type=float, metavar="FACTOR", help="extend the context FACTOR times, by YaRN")
    generate.add_argument("--stats", action="store_true", help="show speed and accepted drafts on standard error")
    ask = "ask for one text after the other, or for more of the same; Ctrl-D ends"
    generate.add_argument("--interactive", action="store_true", help=ask)
    _add_device(generate)
    _add_json(generate)


def _add_eval(commands: argparse._SubParsersAction) -> None:
    line = "measure bits per byte on held-out text, next to a 3-gram model and xz"
    evaluate = _add(commands, "eval", "evaluate", line)
    evaluate.add_argument("folder", type=Path, metavar="FOLDER", help="a run folder or a checkpoint folder")
    own = "measure on this file or folder instead of the held-out part of what the run was trained on"
    evaluate.add_argument("--text", type=Path, metavar="PATH", help=own)
    _add_device(evaluate)
    _add_json(evaluate)


def _add_params(commands: argparse._SubParsersAction) -> None:
    params = _add(commands, "params", "params", "count parameters by component, in all and per token, and the cache")
    which = f"a preset ({', '.join(PRESETS)}), a run folder or a checkpoint folder (default: every preset in a line)"
    params.add_argument("model", nargs="?", metavar="MODEL", help=which)
    memory = params.add_argument_group("memory of a training step")
    memory.add_argument("--memory", action="store_true", help="show what a step would take, by part, without taking it")
    memory.add_argument("--micro-batch-tokens", type=int, metavar="N", help="tokens in the model at once")
    memory.add_argument("--seq-len", type=int, metavar="N", help="tokens in a sequence")
    precision = "of matrix products: fp32, bf16 or auto, bf16 where it is fast (default)"
    memory.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help=precision)
    _add_device(memory)
    _add_json(params)


def _add_progress(commands: argparse._SubParsersAction) -> None:
    progress = _add(commands, "progress", "progress", "show how far you are in the lessons")
    _add_json(progress)


def _add_doctor(commands: argparse._SubParsersAction) -> None:
    doctor = _add(
        commands, "doctor", "doctor", "check this machine: what is installed, what is missing, how fast it is"
    )
    _add_json(doctor)


if __name__ == "__main__":
    sys.exit(main())
