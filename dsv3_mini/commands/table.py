"""Tables for a terminal: text columns to the left, numbers to the right."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of aligned columns; the first column is text, all others are numbers already written out."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        first, *others = (
            cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths))
        )
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)


def format_quality(evaluation: dict) -> str:
    """Bits per byte by domain, the model's next to the baselines' (a table of `evaluate_model`'s result)."""
    columns = {"model": evaluation["bits_per_byte"], "3-gram": evaluation.get("ngram"), "xz": evaluation.get("xz")}
    shown = {name: numbers for name, numbers in columns.items() if numbers}
    domains = [*(d for d in columns["model"] if d != "all"), "all"]
    rows = [[domain, *(f"{numbers[domain]:.3f}" for numbers in shown.values())] for domain in domains]
    return format_table(["bits per byte", *shown], rows)
