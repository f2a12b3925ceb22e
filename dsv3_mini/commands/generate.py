"""`dsv3-mini generate`: continue a prompt, text appearing as it is made."""

from __future__ import annotations

import argparse
import codecs
import json
import sys
import time
from typing import Any

from dsv3_mini.errors import InputError
from dsv3_mini.paths import data_dir

SHIPPED_MODEL = "checkpoints/nano"  # under data/: the first model that anybody can try
FP32_BELOW = 10**9  # parameters; a small model stored in BF16 is faster and no heavier in fp32 on a CPU

# Control characters as pictures, line breaks and tabs aside: text from a model must not steer somebody's terminal.
_PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
_PICTURES |= dict.fromkeys(range(128, 160), 0xFFFD)


def run(args: argparse.Namespace) -> int:
    """Generate and print; what was made before Ctrl-C is kept."""
    prompt = _prompt(args.prompt)
    from dsv3_mini.generate.decode import generate
    from dsv3_mini.interop.load import load_pretrained
    from dsv3_mini.train.checkpoint import latest_checkpoint
    from dsv3_mini.train.device import pick_device
    from dsv3_mini.train.tokenizer import Tokenizer

    folder = latest_checkpoint(args.folder or data_dir() / SHIPPED_MODEL)
    device = pick_device(args.device)
    model = load_pretrained(folder, device=device)
    if device.type == "cpu" and model.num_parameters() < FP32_BELOW:
        model.float()
    tokenizer = Tokenizer.load(folder)
    eos = tokenizer.eos_id
    # In training a document follows an end-of-document token, so that is what an empty page looks like.
    tokens = tokenizer.encode(prompt) or [eos]

    made: list[int] = []
    screen = _Screen(tokenizer, quiet=args.json)
    screen.show(prompt)

    def on_token(step: list[int | None]) -> None:
        token = step[0]
        if token is not None and token != eos:
            made.append(token)
            screen.add(token)

    started, interrupted = time.perf_counter(), False
    try:
        generate(
            model,
            [tokens],
            args.max_new_tokens,
            temperature=args.temperature,
            top_p=args.top_p,
            seed=args.seed,
            eos_token_id=eos,
            on_token=on_token,
        )
    except KeyboardInterrupt:
        interrupted = True
    seconds = time.perf_counter() - started
    screen.end()
    if args.json:
        print(
            json.dumps(
                {
                    "folder": str(folder),
                    "prompt": prompt,
                    "text": tokenizer.decode(made),
                    "prompt_tokens": len(tokens),
                    "tokens": made,
                    "new_tokens": len(made),
                    "seconds": round(seconds, 4),
                    "tokens_per_s": round(len(made) / seconds, 2),
                    "interrupted": interrupted,
                }
            )
        )
    return 130 if interrupted else 0


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
