"""The routing picture shows the record as it is: gates in their cells, borders between groups, load as counts."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from dsv3_mini.errors import InputError
from dsv3_mini.viz.routing import MAX_ROWS, draw_routing, expert_load, gate_matrix, token_label

IDS = torch.tensor([[0, 5], [5, 2], [7, 5]])
WEIGHTS = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.9, 0.1]])


def _draw(**changes) -> Figure:
    given = dict(tokens=["a", "b", "c"], ids=IDS, weights=WEIGHTS, n_experts=8, n_group=4) | changes
    return draw_routing(given.pop("tokens"), given.pop("ids"), given.pop("weights"), **given)


def test_gates_stand_in_the_cell_of_token_and_expert() -> None:
    shown = np.ma.filled(_draw().axes[0].images[0].get_array(), np.nan)
    expected = np.full((3, 8), np.nan)
    for token in range(3):
        for slot in range(2):
            expected[token, IDS[token, slot]] = WEIGHTS[token, slot]
    np.testing.assert_array_equal(shown, expected)


def test_bars_count_the_choices_and_the_line_is_the_even_share() -> None:
    below = _draw().axes[1]
    assert [bar.get_height() for bar in below.patches] == [1, 0, 1, 0, 0, 3, 0, 1]
    assert below.lines[0].get_ydata()[0] == pytest.approx(3 * 2 / 8)


def test_a_border_stands_between_groups_and_nowhere_else() -> None:
    for groups, expected in ((4, [1.5, 3.5, 5.5]), (2, [3.5]), (1, [])):
        above = _draw(n_group=groups).axes[0]
        borders = [line.get_xdata()[0] for line in above.lines if str(line.get_gid()).startswith("group-border")]
        assert borders == expected
        assert [text.get_text() for text in above.texts] == [f"group {g}" for g in range(groups) if groups > 1]


def test_bfloat16_records_are_drawn() -> None:
    shown = np.ma.filled(_draw(weights=WEIGHTS.bfloat16()).axes[0].images[0].get_array(), np.nan)
    assert shown[0, 0] == 0.75


def test_a_long_text_shows_its_first_tokens_but_counts_all() -> None:
    many = MAX_ROWS + 10
    figure = _draw(tokens=["x"] * many, ids=IDS[:1].repeat(many, 1), weights=WEIGHTS[:1].repeat(many, 1))
    above, below = figure.axes[:2]
    assert above.images[0].get_array().shape == (MAX_ROWS, 8)
    assert f"first {MAX_ROWS} of {many}" in above.get_title()
    assert below.patches[0].get_height() == many


def test_tokens_are_text_whatever_they_hold() -> None:
    """A $ would start mathematics, a character without a glyph would warn."""
    pieces = ["$x_1$", "<b>&", " indented\n", "\u4f60", "\u202e", "\x00"]
    labels = [token_label(piece.encode()) for piece in pieces]
    assert labels == ["$x_1$", "<b>&", "␣indented⏎", "\\u4f60", "\\u202e", "\\x00"]
    figure = _draw(tokens=labels, ids=IDS.repeat(2, 1), weights=WEIGHTS.repeat(2, 1))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == labels
    assert not any(label.get_parse_math() for label in figure.axes[0].get_yticklabels())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()


def test_a_piece_of_a_character_is_shown_as_bytes() -> None:
    assert token_label("é".encode()) == "é"
    assert token_label("é".encode()[:1]) == "\\xc3"


def test_load_counts_every_choice_of_any_shape() -> None:
    ids = torch.randint(0, 16, (2, 7, 4), generator=torch.Generator().manual_seed(0))
    load = expert_load(ids, 16)
    assert load.shape == (16,)
    assert load.sum() == ids.numel()
    assert load[3] == (ids == 3).sum()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(tokens=["a", "b"]), "2 labels for 3 rows"),
        (dict(weights=WEIGHTS[:, :1]), r"ids \(3, 2\) and weights \(3, 1\)"),
        (dict(ids=IDS + 1), "n_experts = 8 needs 0..7"),
        (dict(n_group=3), "n_group = 3 must divide n_experts = 8"),
        (dict(tokens=[], ids=IDS[:0], weights=WEIGHTS[:0]), "tokens is empty"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _draw(**changes)


def test_the_table_refuses_a_batch() -> None:
    with pytest.raises(InputError, match="must both be"):
        gate_matrix(IDS[None], WEIGHTS[None], 8)


def test_almost_chosen_experts_and_shared_ones_are_drawn_where_they_stand() -> None:
    almost = np.zeros((3, 8), dtype=int)
    almost[0, 3], almost[2, 1] = 2, 3
    above = _draw(almost=almost, n_shared=2).axes[0]
    marks = {line.get_marker(): line.get_xydata().tolist() for line in above.lines}
    assert marks["o"] == [[3, 0]] and marks["x"] == [[1, 2]]
    assert above.get_xlim() == (-0.5, 9.5)
    assert "shared" in [text.get_text() for text in above.texts]
    with pytest.raises(InputError, match="almost"):
        _draw(almost=almost[:2])
