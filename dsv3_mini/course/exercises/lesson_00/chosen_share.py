"""Exercise 0.2: which share of the active parameters the router chooses."""

from __future__ import annotations

from dsv3_mini import ModelConfig
from dsv3_mini.course.checking import Exercise, Mistake
from dsv3_mini.model.count import count_parameters

_REAL = count_parameters(ModelConfig.preset("v3-671b"))
_SMALL = count_parameters(ModelConfig.preset("nano"))
_ROUTED = next(part for part in _REAL.components if part.name == "routed experts")
_SMALL_ROUTED = next(part for part in _SMALL.components if part.name == "routed experts")
_CHOSEN_SHARE = _ROUTED.active / _REAL.active

CHOSEN_SHARE = Exercise(
    id="0.2",
    idea="deepseekmoe",
    title="Which share of the active parameters does the router choose?",
    minutes=4,
    answer="chosen_share",
    reference=(
        'routed = next(part for part in real.components if part.name == "routed experts")\n'
        "chosen_share = routed.active / real.active"
    ),
    value=_CHOSEN_SHARE,
    tolerance=5e-4,
    mistakes=(
        Mistake(
            "active_of_all",
            _REAL.active / _REAL.total,
            "That is the share of all parameters that is active, the answer to guess 1. Here active is the whole.",
        ),
        Mistake(
            "active_of_all_rounded",
            37 / 671,
            "37 of 671 billion is the share of all parameters that is active. Here active is the whole.",
        ),
        Mistake(
            "chosen_of_all",
            _ROUTED.active / _REAL.total,
            "You divided by all parameters of the model. Asked is a share of the active ones.",
        ),
        Mistake(
            "all_experts",
            _ROUTED.total / _REAL.total,
            "That is the share of the routed experts in the whole model. Take the column of active parameters.",
        ),
        Mistake(
            "chosen_of_experts",
            _ROUTED.active / _ROUTED.total,
            "That is the share of the experts that a token uses (8 of 256). Asked is: of the active parameters, "
            "how many lie in those experts?",
        ),
        Mistake(
            "always_on",
            1 - _CHOSEN_SHARE,
            "That is the other part: what works on every token, whatever the router does.",
        ),
        Mistake("percent", 100 * _CHOSEN_SHARE, "As a percentage that is right; asked is a number from 0 to 1."),
        Mistake(
            "with_shared",
            (_ROUTED.active + next(p for p in _REAL.components if p.name == "shared experts").active) / _REAL.active,
            "The shared experts are in it. They work on every token: nobody chooses them.",
        ),
        Mistake(
            "without_embedding",
            _ROUTED.active / _REAL.active_without_embedding,
            "You left the input embedding out of the active parameters. That can be defended, but the table counts "
            "it: divide by its last row.",
        ),
        Mistake(
            "rounded_total",
            _ROUTED.active / 37e9,
            "You divided by 37 billion, a figure that is rounded. Take the last row of the table.",
        ),
        Mistake(
            "rounded",
            round(_CHOSEN_SHARE, 2),
            "That is right, but rounded: give three digits or more, or let Python compute it from the table.",
        ),
        Mistake("upside_down", 1 / _CHOSEN_SHARE, "Upside down: a share is the part divided by the whole."),
        Mistake("count", _ROUTED.active, "That is the number of parameters chosen. Asked is their share."),
        Mistake(
            "small_model",
            _SMALL_ROUTED.active / _SMALL.active,
            "That is the share in nano. Take the columns of V3 (`real`).",
        ),
    ),
    hints=(
        "The router chooses among the routed experts only. All other rows of the table work on every token.",
        'Both numbers are in the column "V3 active": one in the row of the routed experts, one in the last row.',
        "In code, `real.components` is the list of rows, each with `.name`, `.total` and `.active`; `real.active` "
        "is the last row.",
    ),
    after="So nearly half of what is active would be active for any token at all.",
)
