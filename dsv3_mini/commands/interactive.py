"""`dsv3-mini generate --interactive`: one completion after the other, for a model that continues text.

This is no chat: a base model answers nothing, it goes on. So a line that is typed is the beginning of a text, an empty
line asks for more of it, and `+` adds to it. What was computed for a text stays in the cache (`Prefix`).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from dsv3_mini.errors import InputError
from dsv3_mini.generate.prefill import Prefix

if TYPE_CHECKING:
    from dsv3_mini.commands.generate import Writer

HELP = """Type the beginning of a text; the model goes on. Then
  (an empty line)   more of the same
  + more words      the text so far, your words, and how it goes on (\\n is a line break)
  anything else     a new text
Ctrl-C stops the model in mid-text, Ctrl-D ends."""


def converse(writer: Writer, text: str, stats: bool) -> int:
    """Ask and continue until the end of the input. `text` is the first prompt, if any."""
    print(HELP, file=sys.stderr)
    prefix = Prefix()
    if text:
        text = _go_on(writer, text, prefix, stats, show=text)
    while True:
        try:
            print("> ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
        except KeyboardInterrupt:  # at the prompt there is nothing to stop
            print("\n(Ctrl-D ends)", file=sys.stderr)
            continue
        if not line:
            print(file=sys.stderr)
            return 0
        words = line.rstrip("\r\n").replace("\\n", "\n")
        if words.startswith("+"):
            added = words[1:].removeprefix(" ") if text.endswith((" ", "\n")) or not text else words[1:]
            text += added
        elif words:
            text = words
        elif not text:
            continue
        text = _go_on(writer, text, prefix, stats, show=text if words else "")


def _go_on(writer: Writer, text: str, prefix: Prefix, stats: bool, show: str) -> str:
    """Continue `text` on the screen, after `show`; gives the longer text. Bad input costs a message, not the text."""
    if show:
        print(show, end="", flush=True)
    try:
        done = writer.write(text, prefix, show_prompt=False)
    except InputError as error:
        print(f"\n{error}", file=sys.stderr)
        return text
    if stats:
        print(done.summary(), file=sys.stderr)
    return text + writer.tokenizer.decode(done.made)
