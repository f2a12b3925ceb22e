"""What both exhibits need: the shipped nano, texts to go on with, and drafts of its MTP module without a cache."""

from __future__ import annotations

from functools import cache

import torch

from dsv3_mini.generate.decode import generate
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.paths import data_dir
from dsv3_mini.train.tokenizer import Tokenizer

NEW = 24  # tokens
PROMPTS = (
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "import os\n\n\ndef read(path):\n",
    "Return the number of",
    "What is 12 plus 30? 42\nWhat is 7 times",
)


@cache
def nano() -> tuple[DeepSeekV3, Tokenizer]:
    folder = data_dir() / "checkpoints" / "nano"
    return load_pretrained(folder, dtype=torch.float32), Tokenizer.load(folder)


def texts() -> list[list[int]]:
    return [nano()[1].encode(prompt) for prompt in PROMPTS]


def plain(text: list[int]) -> list[int]:
    """What plain decoding says behind a text."""
    return generate(nano()[0], [text], NEW)[0]


def draft_behind(text: list[int]) -> int:
    """The module's draft: its last position is given the last token of the text and predicts the next one."""
    return _draft(tuple(text))


@cache  # both rules of an exhibit meet the same texts
@torch.no_grad()
def _draft(text: tuple[int, ...]) -> int:
    return int(nano()[0](torch.tensor([text])).mtp_logits[0][0, -1].argmax())


def same_until(said: list[int], wanted: list[int]) -> int:
    """How many tokens two texts have in common before they part."""
    return next((i for i, (a, b) in enumerate(zip(said, wanted)) if a != b), min(len(said), len(wanted)))
