"""Needles: rows of the right length, planted where they should be, and a score that greedy decoding confirms."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dsv3_mini import DeepSeekV3, ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.train import needle_windows
from dsv3_mini.train.documents import Document
from dsv3_mini.train.needle import DIGITS, Haystack, Needle, Planter, draw_needles, found, needle_map, written
from dsv3_mini.train.needle_windows import TIMES_ASKED, NeedleWindows
from dsv3_mini.train.token_data import TokenDataset
from dsv3_mini.train.tokenizer import Tokenizer

CODE = "".join(
    f"def step_{n}(value):\n    total = value + {n}\n    if total > {n}:\n        return total\n    return value\n\n\n"
    for n in range(120)
)
DOCUMENTS = [Document("code", "steps.py", CODE), Document("prose", "words", "No code at all. " * 300)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([CODE, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"], 320)


@pytest.fixture(scope="module")
def haystack(tokenizer: Tokenizer) -> Haystack:
    return Haystack(tokenizer, DOCUMENTS)


@pytest.fixture(scope="module")
def model() -> DeepSeekV3:
    torch.manual_seed(0)
    return DeepSeekV3(
        ModelConfig.preset("nano", vocab_size=320, hidden_size=32, num_hidden_layers=2, intermediate_size=48,
                           moe_intermediate_size=16, num_attention_heads=2, q_lora_rank=16, kv_lora_rank=16)
    ).eval()  # fmt: skip


# The row


@pytest.mark.parametrize("length", [64, 200, 777])
@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_a_row_has_its_length_one_needle_and_ends_in_question_and_answer(
    tokenizer: Tokenizer, haystack: Haystack, length: int, depth: float
) -> None:
    rows, needles = haystack.cell(length, depth, 5)
    assert rows.shape == (5, length) and len({needle.name for needle in needles}) == 5
    for row, needle in zip(rows.tolist(), needles, strict=True):
        text = tokenizer.decode(row)
        assert text.count(needle.line) == 2 and text.endswith(f"\n{needle.name} = {needle.value}")
        assert tokenizer.decode(row[-DIGITS:]) == needle.value  # the answer is its last tokens, and nothing else
        planted = text.index(needle.line)
        asked = len(text) - len(needle.question) - len(needle.value)
        assert abs(planted / asked - depth) < 60 / asked  # the nearest beginning of a line


def test_a_needle_is_a_line_of_its_own_with_the_indentation_of_the_line_that_it_pushes_down(
    tokenizer: Tokenizer,
) -> None:
    planter = Planter(tokenizer)
    tokens = np.array(tokenizer.encode("def f(value):\n    if value:\n        return 1\n    return 2\n"))
    for depth, expected in ((0.0, "AB = 123\ndef f"), (0.5, "\n        AB = 123\n        return 1"),
                            (0.75, "\n    AB = 123\n    return 2")):  # fmt: skip
        text = tokenizer.decode(planter.plant(tokens, Needle("AB", "123"), depth).tolist())
        assert expected in text
        assert text.replace("AB = 123\n", "", 1).split() == tokenizer.decode(tokens.tolist()).split()


def test_planted_text_is_tokenized_as_if_it_had_always_been_there(tokenizer: Tokenizer) -> None:
    tokens = np.array(tokenizer.encode(CODE[:400]))
    planted = Planter(tokenizer).plant(tokens, Needle("QX", "481"), 0.6)
    assert planted.tolist() == tokenizer.encode(tokenizer.decode(planted.tolist()))


def test_the_haystack_is_code_and_the_same_seed_gives_the_same_rows(tokenizer: Tokenizer, haystack: Haystack) -> None:
    rows, needles = haystack.cell(300, 0.5, 4, seed=3)
    again, same = Haystack(tokenizer, DOCUMENTS).cell(300, 0.5, 4, seed=3)
    assert torch.equal(rows, again) and needles == same
    assert not torch.equal(rows, haystack.cell(300, 0.5, 4, seed=4)[0])
    assert "No code at all" not in tokenizer.decode(haystack.tokens.tolist())


def test_test_and_training_share_neither_names_nor_values() -> None:
    rng = np.random.default_rng(0)
    test = [needle for _ in range(200) for needle in draw_needles(rng, 3)]
    trained = [needle for _ in range(200) for needle in draw_needles(rng, 3, for_test=False)]
    assert not {needle.name for needle in test} & {needle.name for needle in trained}
    assert not {needle.value for needle in test} & {needle.value for needle in trained}
    assert all(len(n.value) == DIGITS and n.value[0] != "0" and n.name.isupper() for n in test + trained)


def test_bad_lengths_are_refused_with_what_would_be_right(haystack: Haystack) -> None:
    with pytest.raises(InputError, match=r"length = 10 cannot be: .* take"):
        haystack.cell(10, 0.5, 1)
    with pytest.raises(InputError, match="too few for a row of 100000"):
        haystack.cell(100_000, 0.5, 1)


# The score


def test_one_pass_says_what_greedy_decoding_writes(model: DeepSeekV3, haystack: Haystack) -> None:
    rows, _ = haystack.cell(100, 0.5, 12)
    rows[:4, -DIGITS:] = written(model, rows[:4])  # four rows that it gets right
    rows[1, -1] = (rows[1, -1] + 1) % 320  # one of them but for the last digit
    by_decoding = (written(model, rows) == rows[:, -DIGITS:]).all(-1)
    assert by_decoding.tolist() == found(model, rows).all(-1).tolist()
    assert by_decoding.tolist()[:4] == [True, False, True, True]


def test_a_map_is_the_share_of_whole_answers_by_depth_and_length(model: DeepSeekV3, tokenizer: Tokenizer) -> None:
    """A model that says the right digits at some lengths only, and one digit of three at another."""
    lengths, depths = [64, 100, 150], [0.0, 1.0]
    haystack = Haystack(tokenizer, DOCUMENTS)
    answers = {}
    for length in lengths:
        for depth in depths:
            for row in haystack.cell(length, depth, 4)[0].tolist():
                answers[tuple(row[:-DIGITS])] = row[-DIGITS:]

    class Knows(torch.nn.Module):
        lm_head = torch.nn.Linear(320, 320, bias=False)

        def hidden_states(self, tokens: torch.Tensor) -> torch.Tensor:
            states = torch.zeros(*tokens.shape, 320)
            for b, row in enumerate(tokens.tolist()):
                right = answers[tuple(row[: len(row) + 1 - DIGITS])]
                known = {64: DIGITS, 100: 1, 150: 0}[len(row) + 1]
                for i, digit in enumerate(right):
                    states[b, i - DIGITS, digit if i < known else 5] = 1.0
            return states

    with torch.no_grad():
        Knows.lm_head.weight.copy_(torch.eye(320))
    drawn = needle_map(Knows(), tokenizer, DOCUMENTS, lengths=lengths, depths=depths, count=4)  # type: ignore[arg-type]
    assert drawn["found"] == [[1.0, 0.0, 0.0]] * 2
    assert drawn["digits"] == [[1.0, pytest.approx(1 / 3, abs=1e-4), 0.0]] * 2
    assert json.loads(json.dumps(drawn)) == drawn


# Windows of training


@pytest.fixture(scope="module")
def windows(tokenizer: Tokenizer) -> TokenDataset:
    return TokenDataset(np.array(tokenizer.encode(CODE * 3), dtype=np.uint16), 256, seed=1)


def test_without_a_share_the_windows_are_those_of_the_text(windows: TokenDataset, tokenizer: Tokenizer) -> None:
    planted = NeedleWindows(windows, tokenizer, 0.0)
    for ours, theirs in zip(planted.batch(3, 5), windows.batch(3, 5), strict=True):
        assert torch.equal(ours, theirs)


def test_windows_with_needles_are_as_long_and_ask_for_each_at_their_end(
    windows: TokenDataset, tokenizer: Tokenizer
) -> None:
    inputs, targets = NeedleWindows(windows, tokenizer, 1.0).batch(0, 40)
    plain, _ = windows.batch(0, 40)
    assert inputs.shape == plain.shape and torch.equal(inputs[:, 1:], targets[:, :-1])
    for i in range(40):
        text = tokenizer.decode([*inputs[i].tolist(), int(targets[i, -1])])
        lines = [line.strip() for line in text.split("\n")]
        asked = [line for line in lines[-TIMES_ASKED * 8 :] if line[:2].isupper() and line[2:5] == " = "]
        assert asked and lines[-1] in asked
        for line in set(asked):
            assert lines.count(line) == 1 + TIMES_ASKED, line
        code = [line for line in lines[1:6] if line not in asked]  # before the questions stands the window itself
        assert set(code) <= {line.strip() for line in tokenizer.decode(plain[i].tolist()).split("\n")}


def test_which_windows_hold_needles_depends_on_seed_and_place_alone(
    windows: TokenDataset, tokenizer: Tokenizer
) -> None:
    planted = NeedleWindows(windows, tokenizer, 0.5)
    whole, _ = planted.batch(0, 60)
    parts = torch.cat([planted.batch(start, 20)[0] for start in (0, 20, 40)])
    assert torch.equal(whole, parts)
    plain, _ = windows.batch(0, 60)
    with_needles = (whole != plain).any(-1).float().mean()
    assert 0.3 < with_needles < 0.7


def test_a_window_without_room_for_a_needle_is_refused(tokenizer: Tokenizer) -> None:
    short = TokenDataset(np.array(tokenizer.encode(CODE), dtype=np.uint16), 16)
    with pytest.raises(InputError, match=r"seq_len = 16 cannot be with needle_share = 0.5: at least \d+"):
        NeedleWindows(short, tokenizer, 0.5)
    least = Planter(tokenizer).cost(Needle("AA", "100"), TIMES_ASKED)
    NeedleWindows(TokenDataset(short.tokens, least), tokenizer, 1.0).batch(0, 30)
    assert least <= 2 * needle_windows.TOKENS_PER_NEEDLE
