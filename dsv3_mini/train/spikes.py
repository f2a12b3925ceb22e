"""Loss spikes: noticed, said, written down; training goes on.

The report saw no loss spike that it could not recover from and rolled nothing back (abstract, §1). Small runs do spike:
a learning rate that is too high, a passage of garbage in the text. A step counts as a spike when its main loss lies far
above the last ones, or its gradient norm (before clipping) is many times theirs. "Far" is measured by the median of
the last steps and their median distance from it, which a spike itself does not move as it would move a mean:

    loss > median + 5 * spread, spread = 1.4826 * median |loss - median|      or      norm > 6 * median norm

1.4826 makes the spread that of a normal distribution. The largest values in finished runs of the preset `nano`, where
nothing was wrong, are 2.5 times the spread and 2.4 times the norm.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable
from typing import Any

from torch import nn

from dsv3_mini.train.optimizer import norm_of

WINDOW, LEAST = 50, 20  # steps that are looked back on; below LEAST of them nothing is judged
LOSS_SPREADS, NORM_TIMES = 5.0, 6.0
_LEAST_SPREAD = 0.02  # of the loss: where the last losses hardly differ, a small difference is no spike


class SpikeDetector:
    """Looks at one step after another; remembers the last `WINDOW` of them."""

    def __init__(self, earlier: Iterable[dict[str, Any]] = ()) -> None:
        """`earlier`: records of `metrics.jsonl`, so that a run which continues judges as the unbroken one."""
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._norms: deque[float] = deque(maxlen=WINDOW)
        for record in earlier:
            self._losses.append(record["losses"]["main"])
            self._norms.append(record["grad_norm"])

    def look(self, loss: float, grad_norm: float) -> dict[str, float] | None:
        """What stands out in this step: the values beside the usual ones before it; None for an ordinary step."""
        found = None
        if len(self._losses) >= LEAST:
            usual, usual_norm = statistics.median(self._losses), statistics.median(self._norms)
            spread = 1.4826 * statistics.median(abs(earlier - usual) for earlier in self._losses)
            high_loss = loss > usual + LOSS_SPREADS * max(spread, _LEAST_SPREAD * usual)
            if high_loss or grad_norm > NORM_TIMES * usual_norm:
                found = {"loss": loss, "loss_before": usual, "grad_norm": grad_norm, "grad_norm_before": usual_norm}
        self._losses.append(loss)
        self._norms.append(grad_norm)
        return found


def largest_weight(model: nn.Module) -> dict[str, Any]:
    """The parameter with the largest norm: its name and the norm."""
    norm, name = max((norm_of(param), name) for name, param in model.named_parameters())
    return {"largest_weight": name, "weight_norm": norm}


def describe_spike(step: int, spike: dict[str, Any]) -> str:
    """One line for the person who watches. `spike`: the record of `metrics.jsonl`, see `report`."""
    first, last = spike["sequences"]
    return (
        f"spike in step {step} (sequences {first} to {last} of the run): loss {spike['loss']:.3f} after "
        f"{spike['loss_before']:.3f}, gradient norm {spike['grad_norm']:.3g} after {spike['grad_norm_before']:.3g} "
        f"(medians of the steps before), largest weight norm {spike['weight_norm']:.3g} ({spike['largest_weight']}); "
        "training goes on"
    )
