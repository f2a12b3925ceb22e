"""`dsv3-mini generate`: continue a prompt, text appearing as it is made."""

from __future__ import annotations

import argparse
import codecs
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv3_mini.errors import InputError
from dsv3_mini.paths import data_dir

if TYPE_CHECKING:
    from dsv3_mini.generate.prefill import Prefix
    from dsv3_mini.generate.speculative import SpeculationStats
    from dsv3_mini.model.transformer import DeepSeekV3
    from dsv3_mini.train.tokenizer import Tokenizer

SHIPPED_MODEL = "checkpoints/nano"  # under data/: the first model that anybody can try
FP32_BELOW = 10**9  # parameters; a small model stored in BF16 is faster and no heavier in fp32 on a CPU

# Control characters as pictures, line breaks and tabs aside: text from a model must not steer somebody's terminal.
_PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
_PICTURES |= dict.fromkeys(range(128, 160), 0xFFFD)


def run(args: argparse.Namespace) -> int:
    """Generate and print; what was made before Ctrl-C is kept."""
    if args.interactive:
        return _run_interactive(args)
    prompt = _prompt(args.prompt)
    writer = Writer(args)
    done = writer.write(prompt)
    if args.json:
        print(json.dumps({"folder": str(writer.folder), "prompt": prompt, **done.to_json(writer.tokenizer)}))
    elif args.stats:
        print(done.summary(), file=sys.stderr)
    return 130 if done.interrupted else 0


def _run_interactive(args: argparse.Namespace) -> int:
    from dsv3_mini.commands.interactive import converse

    for name, given in (("--json", args.json), ("--prompt -", args.prompt == "-")):
        if given:
            raise InputError(f"--interactive and {name} exclude each other: one talks to a person, one to a program")
    return converse(Writer(args), args.prompt, stats=args.stats)


@dataclass
class Written:
    """One text and how it came about."""

    prompt_tokens: int
    made: list[int] = field(default_factory=list)  # the end token left out
    seconds: float = 0.0
    first_after: float | None = None  # seconds to the first token: mostly the prefill
    speculation: SpeculationStats | None = None
    reused: int = 0  # tokens of the prompt that were still in the cache
    interrupted: bool = False

    def summary(self) -> str:
        """Three short lines for a person."""
        after = self.first_after or self.seconds
        rate = (len(self.made) - 1) / (self.seconds - after) if len(self.made) > 1 and self.seconds > after else None
        reused = f", {self.reused} of them from the cache" if self.reused else ""
        lines = [
            f"prompt: {self.prompt_tokens} tokens{reused}; the first new one after {after * 1000:.0f} ms",
            f"then {max(len(self.made) - 1, 0)} more" + (f" at {rate:.1f} tokens per second" if rate else ""),
        ]
        s = self.speculation
        if s is not None and s.rounds:
            depths = ", ".join(f"{kept} of {made} ({kept / made:.0%})" for made, kept in s.by_depth if made)
            passes = f"{s.rounds} forward passes, {s.tokens_per_forward:.2f} tokens each"
            lines.append(f"{passes}; drafts accepted, by depth: {depths or 'none was made'}")
        return "\n".join(lines)

    def to_json(self, tokenizer: Tokenizer) -> dict[str, Any]:
        plain: dict[str, Any] = {
            "text": tokenizer.decode(self.made),
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.made,
            "new_tokens": len(self.made),
            "seconds": round(self.seconds, 4),
            "tokens_per_s": round(len(self.made) / self.seconds, 2),
            "interrupted": self.interrupted,
        }
        s = self.speculation
        if s is not None:
            plain["speculation"] = {"forward_passes": s.rounds, "drafted": s.drafted, "accepted": s.accepted}
        return plain


class Writer:
    """A loaded model and the settings of the command line."""

    def __init__(self, args: argparse.Namespace) -> None:
        from dsv3_mini.interop.load import load_pretrained
        from dsv3_mini.train.checkpoint import latest_checkpoint
        from dsv3_mini.train.device import pick_device
        from dsv3_mini.train.tokenizer import Tokenizer

        self.args = args
        given = args.folder or data_dir() / SHIPPED_MODEL
        self.folder = latest_checkpoint(given)
        device = pick_device(args.device)
        self.model = load_pretrained(self.folder, device=device)
        if device.type == "cpu" and self.model.num_parameters() < FP32_BELOW:
            self.model.float()
        self.window = _trained_length(given)
        if args.yarn is not None:
            self.model = _extended(self.model, args.yarn, self.window)
        self.tokenizer = Tokenizer.load(self.folder)
        self.eos = self.tokenizer.eos_id

    def encode(self, text: str) -> list[int]:
        # In training a document follows an end-of-document token, so that is what an empty page looks like.
        return self.tokenizer.encode(text) or [self.eos]

    def write(self, prompt: str, prefix: Prefix | None = None, show_prompt: bool = True) -> Written:
        """Continue `prompt` on the screen. Ctrl-C ends it, and what is there stays."""
        from dsv3_mini.generate.decode import generate
        from dsv3_mini.generate.speculative import SpeculationStats

        args, tokens = self.args, self.encode(prompt)
        done = Written(len(tokens), speculation=SpeculationStats() if args.speculative else None)
        self._warn_of_length(len(tokens) + args.max_new_tokens)
        screen = _Screen(self.tokenizer, quiet=args.json)
        started = time.perf_counter()

        def on_token(step: list[int | None]) -> None:
            token = step[0]
            if done.first_after is None:
                done.first_after = time.perf_counter() - started
            if token is not None and token != self.eos:
                done.made.append(token)
                screen.add(token)

        if show_prompt:
            screen.show(prompt)
        try:
            generate(
                self.model,
                [tokens],
                args.max_new_tokens,
                temperature=args.temperature,
                top_p=args.top_p,
                seed=args.seed,
                eos_token_id=self.eos,
                on_token=on_token,
                speculative=args.speculative,
                confidence=args.confidence,
                stats=done.speculation,
                prefix=prefix,
            )
        except KeyboardInterrupt:
            done.interrupted = True
        done.seconds = time.perf_counter() - started
        done.reused = 0 if prefix is None else prefix.reused
        screen.end()
        return done

    def _warn_of_length(self, tokens: int) -> None:
        if self.args.yarn is None and self.window is not None and tokens > self.window and self.args.stats:
            print(
                f"note: up to {tokens} tokens, and this model was trained on {self.window} at a time; text gets worse "
                f"beyond that. --yarn {-(-tokens // self.window)} extends it",
                file=sys.stderr,
            )


def _trained_length(folder: Path) -> int | None:
    """Tokens in a sequence of the training, where the folder says so (a run folder, or a model that is shipped)."""
    from dsv3_mini.train.run_folder import RUN_FILE, read_run

    for place in (folder, *folder.parents[:2]):  # a checkpoint lies within its run
        if (place / RUN_FILE).is_file():
            return int(read_run(place)["config"]["seq_len"])
    return None


def _extended(model: DeepSeekV3, factor: float, window: int | None) -> DeepSeekV3:
    from dsv3_mini.model.long_context import extended

    if not factor >= 1:
        raise InputError(f"--yarn {factor:g} cannot be: the context becomes so many times longer, so it is at least 1")
    return extended(model, factor, window or model.cfg.max_position_embeddings)


class _Screen:
    """Prints text as its tokens come. A token may end inside a character: those bytes wait for the rest of it."""

    def __init__(self, tokenizer: Any, quiet: bool) -> None:
        self.tokenizer, self.quiet = tokenizer, quiet
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.to_terminal = sys.stdout.isatty()

    def add(self, token: int) -> None:
        self.show(self.decoder.decode(self.tokenizer.decode_bytes([token])))

    def end(self) -> None:
        self.show(self.decoder.decode(b"", final=True) + "\n")

    def show(self, text: str) -> None:
        if not self.quiet:
            print(text.translate(_PICTURES) if self.to_terminal else text, end="", flush=True)


def _prompt(given: str) -> str:
    """The prompt: as given, or all of standard input for `-`."""
    if given != "-":
        return given
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text: byte {error.start} cannot be read") from None
