"""The pictures of the twins show the numbers of the result, each arm where it belongs."""

from __future__ import annotations

import pytest

from dsv3_mini.errors import InputError
from dsv3_mini.viz import twins
from dsv3_mini.viz.twins import draw_attention, draw_sizes, draw_twins


def _result(arms, minus=0.0):
    """arms: {name: (steps, step_time, bits of seed 0, of seed 1)}."""
    runs = [
        {
            "arm": name, "seed": seed, "steps": [steps], "bits_per_byte": {"code": b - 1, "all": b},
            "evaluations": [[steps // 2, {"code": b, "all": b + 1}]],
        }
        for name, (steps, _, *bits) in arms.items() for seed, b in enumerate(bits)
    ]  # fmt: skip
    summary = {
        name: {
            "bits_per_byte": {
                domain: {"mean": sum(bits) / 2 - less, "low": min(bits) - less, "high": max(bits) - less}
                for domain, less in (("code", 1), ("all", 0))
            }
        }
        for name, (_, _, *bits) in arms.items()
    }
    about = {
        name: {"steps": steps, "step_time": time, "cache_bytes_per_token": 100 * place + 100}
        for place, (name, (steps, time, *_)) in enumerate(arms.items())
    }
    return {"arms": about, "runs": runs, "seeds": [0, 1], "summary": summary}


TWINS = _result(
    {
        "moe": (10, None, 2.0, 2.2),
        "dense twin": (10, 0.8, 2.1, 2.3),
        "dense twin, equal time": (12, 0.8, 1.9, 2.0),
    }
)


def test_equal_steps_are_left_and_equal_time_right_on_the_clock_of_the_moe():
    left, right = draw_twins(TWINS).axes
    by_label = {line.get_label(): line for line in left.lines}
    assert set(by_label) == {"MoE: 2.100", "dense twin: 2.200"}
    assert list(by_label["dense twin: 2.200"].get_xdata()) == [5, 10]
    assert list(by_label["dense twin: 2.200"].get_ydata()) == pytest.approx([3.2, 2.2])
    by_label = {line.get_label(): line for line in right.lines}
    assert set(by_label) == {"MoE: 2.100", "dense twin: 1.950"}
    assert list(by_label["dense twin: 1.950"].get_xdata()) == pytest.approx([4.8, 9.6])
    code, _ = draw_twins(TWINS, "code").axes
    assert {line.get_label() for line in code.lines} == {"MoE: 1.100", "dense twin: 1.200"}
    with pytest.raises(InputError, match=r"what = 'math'|domain = 'math'"):
        draw_twins(TWINS, "math")


def test_sizes_show_each_seed_and_zero_is_level():
    (axes,) = draw_sizes({"sizes": {"small": TWINS, "large": TWINS}}).axes
    points = {(round(x, 2), round(y, 3)) for line in axes.lines for x, y in zip(*line.get_data()) if line.get_alpha()}
    assert points == {(-0.12, 0.1), (0.12, -0.1), (0.12, -0.2), (0.88, 0.1), (1.12, -0.1), (1.12, -0.2)}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["small", "large"]
    assert any(list(line.get_ydata()) == [0, 0] for line in axes.lines)


def test_attention_stands_at_its_cache():
    kinds = _result({"mla": (10, None, 2.0, 2.2), "mha": (10, None, 2.1, 2.1), "gqa": (10, None, 2.3, 2.5)})
    (axes,) = draw_attention(kinds).axes
    points = {(line.get_xdata()[0], round(line.get_ydata()[0], 3)) for line in axes.lines if len(line.get_xdata()) == 1}
    assert points == {(100, 2.1), (200, 2.1), (300, 2.4)}
    assert {text.get_text() for text in axes.texts} == {"MLA", "MHA", "GQA"}


def test_pictures_are_written_for_the_results_that_are_there(tmp_path, monkeypatch, capsys):
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(twins, "data_dir", lambda: tmp_path)

    def load(name):
        if name != "twins":
            raise InputError(f"{name} is missing")
        return TWINS

    monkeypatch.setattr(twins, "load_lab", load)
    assert twins.main() == 0
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["twins.png"]
    assert (tmp_path / "results" / "twins.png").read_bytes().startswith(b"\x89PNG")
    assert "twins_sizes is missing" in capsys.readouterr().err
