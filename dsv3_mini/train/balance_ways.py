"""Four ways to treat the balance of the experts, as settings of a training run (§2.1.2, §4.5.2, §4.5.3).

    none      nothing: the router goes where the main loss takes it
    sequence  the sequence-wise auxiliary loss, strong enough to balance alone, and no routing bias
    batch     the batch-wise auxiliary loss, as strong, and no routing bias
    bias      the report's: the routing bias, and the sequence-wise loss at 1e-4 against extremes in one sequence

The report compares the same ideas (Table 5 and §4.5.3) but prints no strength for its losses. `LOSS_ALPHA` is our
choice for models of this size: of 0.001, 0.01 and 0.1 the one at which they balance a nano model about as well as
the bias does, so that the ways are compared at like balance.
"""

from __future__ import annotations

import dataclasses

from dsv3_mini.errors import InputError
from dsv3_mini.train.config import TrainConfig

WAYS = {
    "none": "no balancing",
    "sequence": "sequence-wise loss",
    "batch": "batch-wise loss",
    "bias": "routing bias",
}
LOSS_ALPHA = 0.01


def balanced(cfg: TrainConfig, way: str, *, alpha: float = LOSS_ALPHA, speed: float | None = None) -> TrainConfig:
    """The same run, balanced in one of the four `WAYS`.

    alpha: strength of the loss in "sequence" and "batch". speed: gamma in "bias"; None leaves what `cfg` has.
    Raises `InputError` for a way that there is not.
    """
    if way not in WAYS:
        raise InputError(f"way = {way!r} cannot be: it must be one of {', '.join(WAYS)}")
    model, off = cfg.model_config, {"balance_loss_alpha": 0.0, "batch_balance_loss_alpha": 0.0}
    if way == "bias":
        model = model.replace(**{**off, "balance_loss_alpha": 1e-4})
        return dataclasses.replace(
            cfg, model=model, bias_update_speed=cfg.bias_update_speed if speed is None else speed
        )
    if way == "sequence":
        off["balance_loss_alpha"] = alpha
    if way == "batch":
        off["batch_balance_loss_alpha"] = alpha
    return dataclasses.replace(cfg, model=model.replace(**off), bias_update_speed=0.0)
