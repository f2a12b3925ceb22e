"""Pictures of the experiments in `train.twins`: lower is better, a band or bar spans the seeds.

python -m dsv3_mini.viz.twins        draws data/results/twins*.json into data/results/twins*.png
"""

from __future__ import annotations

import sys
from typing import Any

from matplotlib.axes import Axes

from dsv3_mini.errors import InputError
from dsv3_mini.paths import data_dir
from dsv3_mini.train.balance_lab import curve, load_lab
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

_NAMES = {"moe": "MoE", "mla": "MLA", "mha": "MHA", "gqa": "GQA"}
_TIME = ", equal time"


def draw_twins(result: dict[str, Any], domain: str = "all") -> Picture:
    """Held-out bits per byte over a run: left at equal steps, right at equal time. `result` as from `run_twins`.

    Every curve is a run with a schedule of its own length, so only the ends of the curves compare.
    """
    figure = Picture(9.2, 4.0, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    arms = result["arms"]
    steps = [arm for arm in arms if not arm.endswith(_TIME)]
    times = [arm for arm in arms if arm.endswith(_TIME) or arms[arm]["step_time"] is None]
    for axes, chosen, title in ((left, steps, "Equal steps: equal data"), (right, times, "Equal time: equal cost")):
        for arm, (colour, line, marker) in zip(chosen, style.STYLES):
            per_step = 1.0 if axes is left else arms[arm]["step_time"] or 1.0
            _draw_curve(axes, result, arm, domain, per_step, colour, line, marker)
        axes.set_title(title)
        axes.legend()
    left.set(xlabel="steps", ylabel=f"bits per byte, held out ({domain})")
    right.set(xlabel="time, in steps of the MoE")
    return figure


def draw_sizes(result: dict[str, Any], domain: str = "all") -> Picture:
    """Dense twin minus MoE, bits per byte, by size: above 0 the MoE is ahead. `result` as from `run_crossing`."""
    figure = Picture(style.SIZE[0], 3.8, layout="constrained")
    axes = figure.subplots()
    sizes = result["sizes"]
    for shift, arm, label in ((-0.12, "dense twin", "at equal steps"), (0.12, "dense twin" + _TIME, "at equal time")):
        colour, _, marker = style.STYLES[shift > 0]
        for place, size in enumerate(sizes.values()):
            differences = _differences(size, arm, domain)
            axes.plot(
                [place + shift] * len(differences), differences, marker, color=colour, alpha=0.55, linestyle="none"
            )
            mean = sum(differences) / len(differences)
            axes.plot([place + shift - 0.09, place + shift + 0.09], [mean, mean], color=colour, linestyle="-")
        axes.plot([], [], color=colour, marker=marker, label=label)
    axes.axhline(0, color=style.INK, linewidth=1)
    axes.set_xticks(range(len(sizes)), list(sizes))
    axes.set(ylabel="bits per byte, dense twin − MoE", title="Above the line the MoE is ahead")
    axes.set_xlim(-0.5, len(sizes) - 0.5)
    axes.legend()
    return figure


def draw_attention(result: dict[str, Any], domain: str = "all") -> Picture:
    """Bits per byte against the cache that a token needs, by kind of attention. `result` as from `run_attention`."""
    figure = Picture(style.SIZE[0], 3.8, layout="constrained")
    axes = figure.subplots()
    for (arm, about), (colour, _, marker) in zip(result["arms"].items(), style.STYLES):
        spread = _summary(result, arm, domain)
        x, mean = about["cache_bytes_per_token"], spread["mean"]
        axes.plot([x, x], [spread["low"], spread["high"]], color=colour, linestyle="-", linewidth=1.5)
        axes.plot([x], [mean], marker=marker, color=colour, markersize=9, linestyle="none")
        style.label_line(axes, x, mean, _NAMES.get(arm, arm), colour, offset=(9, 0))
    axes.set(xlabel="cache bytes per token, bf16", ylabel=f"bits per byte, held out ({domain})")
    axes.set(title="Equal parameters, equal steps: a smaller cache is further left")
    axes.set_xlim(left=0, right=1.15 * max(about["cache_bytes_per_token"] for about in result["arms"].values()))
    return figure


def _draw_curve(
    axes: Axes, result: dict[str, Any], arm: str, domain: str, per_step: float, colour: str, line: str, marker: str
) -> None:
    found = curve(result, arm, domain, key="arm")
    end = _summary(result, arm, domain)
    steps, band = list(found["steps"]), {name: list(found[name]) for name in ("mean", "low", "high")}
    last = result["arms"][arm]["steps"]
    if steps[-1] != last:  # the schedule of the evaluations does not always end with the run
        steps.append(last)
        for name, values in band.items():
            values.append(end[name])
    x = [step * per_step for step in steps]
    axes.fill_between(x, band["low"], band["high"], color=style.tint(colour, 0.3), linewidth=0)
    name = _NAMES.get(arm, arm.removesuffix(_TIME))
    axes.plot(x, band["mean"], color=colour, linestyle=line, marker=marker, label=f"{name}: {end['mean']:.3f}")


def _differences(result: dict[str, Any], arm: str, domain: str) -> list[float]:
    bits = {(run["arm"], run["seed"]): run["bits_per_byte"][domain] for run in result["runs"]}
    return [bits[arm, seed] - bits["moe", seed] for seed in result["seeds"]]


def _summary(result: dict[str, Any], arm: str, domain: str) -> dict[str, float]:
    bits = result["summary"][arm]["bits_per_byte"]
    if domain not in bits:
        raise InputError(f"domain = {domain!r} cannot be: it must be one of {', '.join(bits)}")
    return bits[domain]


DRAWN = {"twins": draw_twins, "twins_sizes": draw_sizes, "twins_attention": draw_attention}


def main() -> int:
    """Draw every experiment that has a result; gives the exit code."""
    style.use()
    for name, draw in DRAWN.items():
        try:
            result = load_lab(name)
        except InputError as missing:
            print(missing, file=sys.stderr)
            continue
        path = data_dir() / "results" / f"{name}.png"
        path.write_bytes(draw(result)._repr_png_())
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
