"""What changes when: the schedules of the report (§4.2, "Training Hyper-Parameters"), scaled to a run of any length.

The report gives its schedule in tokens of 14.8T. Every function here takes `progress`, the share of all training
tokens seen so far (0 at the start, 1 at the end), so that one number, how long the run is, scales all of it:

    tokens seen        learning rate             batch (sequences)   lambda (MTP)   gamma (bias speed)
    0                  0 -> peak in 2K steps     3072, growing       0.3            0.001
    469B               peak                      15360               0.3            0.001
    10T                peak, cosine begins       15360               0.1            0.001
    14.3T              peak / 10                 15360               0.1            0
    14.633T            peak * 7.3 / 220          15360               0.1            0
    14.8T              end

The one thing that the report counts in steps is the warm-up; how many steps its run has follows from the batch
sizes (`REPORT_STEPS`, about 243K). The report does not say in which shape the batch grows: here it is linear in
tokens.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

REPORT_TOKENS = 14.8e12
REPORT_SEQUENCE = 4096  # tokens in a sequence
REPORT_PEAK_RATE = 2.2e-4
REPORT_WARMUP_STEPS = 2000
REPORT_BATCH = 15360  # sequences, after the ramp

_BATCH_START = 3072 / 15360  # the first batch, as a share of the last
_BATCH_RAMP_END = 469e9 / REPORT_TOKENS
_DECAY_START = 10e12 / REPORT_TOKENS
_DECAY_END = 14.3e12 / REPORT_TOKENS
_LAST_START = 14.633e12 / REPORT_TOKENS  # 14.3T + 333B
_MID_RATE = 2.2e-5 / REPORT_PEAK_RATE
_LAST_RATE = 7.3e-6 / REPORT_PEAK_RATE
# Steps of a run in units of (all tokens / tokens of a full batch): a batch that grows linearly in tokens from a to 1
# over the first r of the tokens takes r * ln(1/a) / (1 - a) steps of these for the ramp, and 1 - r after it.
_STEPS_PER_FULL_BATCH = _BATCH_RAMP_END * math.log(1 / _BATCH_START) / (1 - _BATCH_START) + 1 - _BATCH_RAMP_END

REPORT_STEPS = REPORT_TOKENS / (REPORT_BATCH * REPORT_SEQUENCE) * _STEPS_PER_FULL_BATCH  # derived, not printed there


def learning_rate(progress: float, peak: float, warmup: float = 1.0) -> float:
    """The learning rate after `progress` (0..1) of the tokens.

    `warmup` is the share of the warm-up steps done; from 1 on the warm-up is over. Constant to 10T of 14.8T tokens,
    a cosine down to a tenth until 14.3T, constant for 333B, and 7.3/220 of the peak for the last 167B.
    """
    if progress < _DECAY_START:
        share = 1.0
    elif progress < _DECAY_END:
        angle = math.pi * (progress - _DECAY_START) / (_DECAY_END - _DECAY_START)
        share = _MID_RATE + (1 - _MID_RATE) * (1 + math.cos(angle)) / 2
    elif progress < _LAST_START:
        share = _MID_RATE
    else:
        share = _LAST_RATE
    return peak * share * min(max(warmup, 0.0), 1.0)


def mtp_weight(progress: float) -> float:
    """lambda of Eq. 25: 0.3 for the first 10T of 14.8T tokens, 0.1 after."""
    return 0.3 if progress < _DECAY_START else 0.1


def bias_speed(progress: float, peak: float = 0.001) -> float:
    """gamma of the routing-bias update (§2.1.2): `peak` until 14.3T of 14.8T tokens, then 0: the biases freeze."""
    return peak if progress < _DECAY_END else 0.0


def batch_sequences(progress: float, full: int) -> int:
    """Sequences in a batch: from full/5, linear in tokens, to `full` at 469B of 14.8T, and `full` from there."""
    share = _BATCH_START + (1 - _BATCH_START) * min(max(progress, 0.0) / _BATCH_RAMP_END, 1.0)
    return max(1, round(full * share))


def warmup_steps(steps: int) -> int:
    """How many of `steps` warm the learning rate up: as large a share as the report's 2K, and at least one."""
    return max(1, round(steps * REPORT_WARMUP_STEPS / REPORT_STEPS))


@dataclass(frozen=True)
class StepSettings:
    """Everything that one optimizer step takes from the schedule."""

    progress: float  # share of the tokens seen before this step
    start: int  # index of the first sequence of the batch: how many sequences came before
    sequences: int  # in the batch
    lr: float
    mtp_weight: float  # lambda
    bias_speed: float  # gamma


@dataclass(frozen=True)
class Schedule:
    """The schedule of a run of exactly `steps` optimizer steps; `schedule[i]` is the setting of step i (0-based)."""

    steps: int
    full_batch: int  # sequences in a batch after the ramp
    peak_rate: float
    peak_bias_speed: float
    warmup: int  # steps

    @cached_property
    def starts(self) -> list[int]:
        """Sequences consumed before each step, and as last entry by the whole run."""
        # How many sequences make `steps` steps is known in closed form before rounding to whole sequences; the exact
        # total, which progress refers to, is then the sum.
        total = self.steps * self.full_batch / _STEPS_PER_FULL_BATCH
        sizes: list[int] = []
        consumed = 0
        for _ in range(self.steps):
            sizes.append(batch_sequences(consumed / total, self.full_batch))
            consumed += sizes[-1]
        return [0, *accumulate(sizes)]

    @property
    def total_sequences(self) -> int:
        return self.starts[-1]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> StepSettings:
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of a schedule of {self.steps} steps")
        start, end = self.starts[step], self.starts[step + 1]
        progress = start / self.total_sequences
        return StepSettings(
            progress=progress,
            start=start,
            sequences=end - start,
            # The first step is step 1 of the warm-up: a step at rate 0 would be a step wasted.
            lr=learning_rate(progress, self.peak_rate, (step + 1) / self.warmup),
            mtp_weight=mtp_weight(progress),
            bias_speed=bias_speed(progress, self.peak_bias_speed),
        )


@dataclass(frozen=True)
class ExtensionSchedule(Schedule):
    """A phase of context extension (§4.3): full batches at one rate, after the warm-up.

    The report names the rate, 7.3e-6, at which pre-training ended. It does not name lambda and gamma; here they, too,
    stay what they were at the end of pre-training: 0.1, and 0 (the routing biases do not move).
    """

    @cached_property
    def starts(self) -> list[int]:
        return [step * self.full_batch for step in range(self.steps + 1)]

    def __getitem__(self, step: int) -> StepSettings:
        settings = super().__getitem__(step)
        rate = self.peak_rate * min(1.0, (step + 1) / self.warmup)
        return dataclasses.replace(settings, lr=rate, mtp_weight=mtp_weight(1.0), bias_speed=bias_speed(1.0))


def extension_rate(peak: float) -> float:
    """The rate of the extension phases for a pre-training that peaked at `peak`: the report's 7.3e-6 of 2.2e-4."""
    return peak * _LAST_RATE
