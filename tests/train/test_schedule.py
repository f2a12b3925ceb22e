"""The schedules give back the report's table at the report's scale, and scale to any number of steps."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_mini.train.schedule import (
    REPORT_BATCH,
    REPORT_SEQUENCE,
    REPORT_STEPS,
    REPORT_TOKENS,
    Schedule,
    batch_sequences,
    bias_speed,
    learning_rate,
    mtp_weight,
    warmup_steps,
)

T, B = 1e12, 1e9  # tokens
PEAK = 2.2e-4
shares = st.floats(0, 1)


def rate(tokens: float) -> float:
    return learning_rate(tokens / REPORT_TOKENS, PEAK)


@pytest.mark.parametrize("tokens", [0, 1 * B, 469 * B, 5 * T, 9.999 * T])
def test_rate_is_the_peak_until_10T(tokens):
    assert rate(tokens) == PEAK


def test_rate_falls_along_a_cosine_from_10T_to_14_3T():
    assert rate(10 * T) == pytest.approx(2.2e-4)
    assert rate(12.15 * T) == pytest.approx((2.2e-4 + 2.2e-5) / 2), "half-way in tokens is half-way down"
    assert rate(11.075 * T) == pytest.approx(2.2e-5 + (2.2e-4 - 2.2e-5) * (1 + math.cos(math.pi / 4)) / 2)
    assert rate(14.2999 * T) == pytest.approx(2.2e-5, rel=1e-5)


@pytest.mark.parametrize("tokens", [14.3001 * T, 14.5 * T, 14.3 * T + 332.9 * B])
def test_rate_is_a_tenth_for_333B(tokens):
    assert rate(tokens) == pytest.approx(2.2e-5)


@pytest.mark.parametrize("tokens", [14.3 * T + 333.1 * B, 14.7 * T, 14.8 * T])
def test_rate_of_the_last_167B(tokens):
    assert rate(tokens) == pytest.approx(7.3e-6)


@pytest.mark.parametrize(("step", "expected"), [(0, 0), (500, 5.5e-5), (1000, 1.1e-4), (2000, 2.2e-4), (9000, 2.2e-4)])
def test_rate_warms_up_linearly_over_2K_steps(step, expected):
    assert learning_rate(1e-4, PEAK, step / 2000) == pytest.approx(expected)


def test_mtp_weight_drops_at_10T():
    assert [mtp_weight(t * T / REPORT_TOKENS) for t in (0, 9.99, 10.01, 14.8)] == [0.3, 0.3, 0.1, 0.1]


def test_bias_speed_stops_at_14_3T():
    assert [bias_speed(t * T / REPORT_TOKENS) for t in (0, 10, 14.29, 14.31, 14.8)] == [0.001, 0.001, 0.001, 0, 0]


def test_batch_grows_from_3072_to_15360_over_469B():
    sizes = [batch_sequences(t * B / REPORT_TOKENS, REPORT_BATCH) for t in (0, 234.5, 469, 14800)]
    assert sizes == [3072, (3072 + 15360) / 2, 15360, 15360]


def test_the_report_trains_for_243_thousand_steps():
    # By the report's numbers: about 228K steps after the ramp, roughly 240K in all if the ramp is linear.
    tokens, steps = 0.0, 0
    while tokens < 469 * B:
        tokens += batch_sequences(tokens / REPORT_TOKENS, REPORT_BATCH) * REPORT_SEQUENCE
        steps += 1
    after = (REPORT_TOKENS - tokens) / (REPORT_BATCH * REPORT_SEQUENCE)
    assert after == pytest.approx(228e3, rel=2e-3)
    assert steps + after == pytest.approx(REPORT_STEPS, rel=1e-4)
    assert warmup_steps(round(REPORT_STEPS)) == 2000


@given(shares, shares)
def test_rate_never_rises_after_the_warm_up(a, b):
    early, late = sorted((a, b))
    assert learning_rate(early, 1.0) >= learning_rate(late, 1.0) >= 7.3 / 220 * 0.999


@settings(max_examples=30)
@given(st.integers(1, 3000), st.integers(1, 64))
def test_a_run_has_exactly_its_steps_and_ends_at_its_last_token(steps, full):
    schedule = Schedule(steps=steps, full_batch=full, peak_rate=1.0, peak_bias_speed=0.01, warmup=warmup_steps(steps))
    taken = [schedule[i] for i in range(steps)]
    assert len(schedule) == steps
    assert [s.start for s in taken[1:]] == [s.start + s.sequences for s in taken[:-1]], "no sequence left out"
    assert taken[0].start == 0 and taken[-1].start + taken[-1].sequences == schedule.total_sequences
    assert all(1 <= s.sequences <= full for s in taken)
    assert all(0 <= s.progress < 1 and 0 < s.lr <= 1 for s in taken)
    with pytest.raises(IndexError):
        schedule[steps]


@settings(max_examples=20)
@given(st.integers(300, 3000))
def test_a_scaled_run_spends_its_tokens_like_the_report(steps):
    schedule = Schedule(steps=steps, full_batch=64, peak_rate=PEAK, peak_bias_speed=0.001, warmup=warmup_steps(steps))
    taken = [schedule[i] for i in range(steps)]

    # Shares of the *steps*; after the ramp, which takes 6 % of them, steps and tokens go together.
    def at(condition) -> float:
        return sum(map(condition, taken)) / steps

    after_ramp = (1 - 469 / 14800) * REPORT_TOKENS / (REPORT_BATCH * REPORT_SEQUENCE) / (1 - 469 / 14800)
    full_steps = after_ramp / REPORT_STEPS  # steps of the whole run per full batch of its tokens
    assert at(lambda s: s.mtp_weight == 0.1) == pytest.approx(4.8 / 14.8 * full_steps, abs=2.5 / steps + 2e-3)
    assert at(lambda s: s.bias_speed == 0) == pytest.approx(0.5 / 14.8 * full_steps, abs=2.5 / steps + 2e-3)
    assert at(lambda s: s.lr < 0.05 * PEAK and s.progress > 0.5) == pytest.approx(
        0.167 / 14.8 * full_steps, abs=2.5 / steps + 2e-3
    )
    assert at(lambda s: s.sequences == 64) == pytest.approx(1 - 15010 / REPORT_STEPS, abs=0.01)


def test_the_first_step_is_not_wasted_and_the_warm_up_ends_at_the_peak():
    schedule = Schedule(steps=1200, full_batch=8, peak_rate=PEAK, peak_bias_speed=0.001, warmup=10)
    assert [schedule[i].lr / PEAK for i in range(11)] == pytest.approx([*(n / 10 for n in range(1, 11)), 1.0])
