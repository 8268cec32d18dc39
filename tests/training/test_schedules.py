import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmax.errors import InputError
from vlmax.training.schedules import Constant, Cosine, EpochCosine, EpochDecay, Linear, Rsqrt

ALL = [Cosine(1e-3, 10, 1e-5), Linear(1e-3, 10, 1e-5), Constant(1e-3, 10), Rsqrt(1e-3, 10, 100)]


def values(schedule, total, steps):
    return np.asarray([float(schedule.build(total)(step)) for step in steps])


@pytest.mark.parametrize("schedule", ALL)
def test_warm_up_is_a_line_from_zero_that_ends_at_the_peak(schedule):
    np.testing.assert_allclose(values(schedule, 100, range(11)), np.arange(11) * 1e-4, rtol=1e-6)


@pytest.mark.parametrize("schedule", [Cosine(1e-3, 10, 1e-5), Linear(1e-3, 10, 1e-5)])
def test_the_end_is_reached_at_the_last_step_and_kept(schedule):
    np.testing.assert_allclose(values(schedule, 100, [100, 101, 1000]), 1e-5, rtol=1e-5)
    assert values(schedule, 100, [99])[0] > 1e-5


def test_cosine_in_between():
    want = [0.5 * 1e-3 * (1 + math.cos(math.pi * (k - 10) / 90)) for k in range(10, 101)]
    np.testing.assert_allclose(values(Cosine(1e-3, 10), 100, range(10, 101)), want, rtol=1e-5, atol=1e-10)


def test_linear_in_between():
    want = [1e-3 * (100 - k) / 90 for k in range(10, 101)]
    np.testing.assert_allclose(values(Linear(1e-3, 10), 100, range(10, 101)), want, rtol=1e-5, atol=1e-10)


def test_constant_stays():
    np.testing.assert_allclose(values(Constant(1e-3, 10), 100, [10, 50, 99, 5000]), 1e-3, rtol=1e-6)


def test_rsqrt_halves_after_three_timescales_and_cools_down():
    rates = values(Rsqrt(1e-3, 10, 100, cooldown_steps=50), 1000, [10, 310, 949, 950, 975, 1000])
    np.testing.assert_allclose(rates[:2], [1e-3, 5e-4], rtol=1e-6)
    np.testing.assert_allclose(rates[2:], 1e-3 / np.sqrt(1 + (np.array([949, 950, 975, 1000]) - 10) / 100)
                               * [1, 1, 0.5, 0], rtol=1e-5)  # fmt: skip


@pytest.mark.parametrize("schedule", [Cosine(0.5), Linear(0.5), Constant(0.5), Rsqrt(0.5)])
def test_without_warm_up_the_first_step_has_the_peak(schedule):
    assert values(schedule, 100, [0])[0] == 0.5


@given(total=st.integers(2, 10**6), part=st.floats(0, 0.99), end=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_rates_stay_between_zero_and_the_peak(total, part, end):
    warmup = int(part * total)
    for schedule in (Cosine(1.0, warmup, end), Linear(1.0, warmup, end), Rsqrt(1.0, warmup, 50)):
        rates = values(schedule, total, [0, warmup // 2, warmup, (warmup + total) // 2, total - 1, total])
        assert np.all((rates >= 0) & (rates <= 1 + 1e-6))
        np.testing.assert_allclose(rates[2], 1.0, rtol=1e-6)


@pytest.mark.parametrize("schedule", ALL)
def test_it_runs_under_jit(schedule):
    built = schedule.build(100)
    np.testing.assert_allclose(float(jax.jit(built)(np.int32(57))), float(built(57)), rtol=1e-6)


@pytest.mark.parametrize("schedule", ALL)
def test_a_warm_up_longer_than_the_run_is_an_error(schedule):
    with pytest.raises(InputError, match=r"optimizer\.schedule\.warmup_steps is 10.*has 10 steps.*at most 9"):
        schedule.build(10)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Cosine(0.0), "peak is 0.0"),
        (Constant(float("nan")), "peak is nan"),
        (Linear(1e-3, -1), "warmup_steps is -1"),
        (Cosine(1e-3, end=1e-2), "end is 0.01"),
        (Rsqrt(1e-3, timescale=0), "timescale is 0"),
        (Rsqrt(1e-3, 60, cooldown_steps=60), "cooldown_steps is 60.*0 and 40"),
    ],
)
def test_numbers_that_make_no_sense_are_named(schedule, message):
    with pytest.raises(InputError, match=message):
        schedule.build(100)


def public_blip(epochs, steps, warmup):
    """Rates of github.com/salesforce/BLIP, pretrain.py, with the numbers of configs/pretrain.yaml."""
    rates = []
    for epoch in range(epochs):
        rate = max(1e-6, 3e-4 * 0.9**epoch)
        for i in range(steps):
            if epoch == 0:
                rate = min(3e-4, 1e-6 + (3e-4 - 1e-6) * i / warmup)
            rates.append(rate)
    return rates


@pytest.mark.parametrize("warmup", [30, 90])
def test_a_decay_by_epochs_is_that_of_blip(warmup):
    found = values(EpochDecay(3e-4, 50, warmup_steps=warmup), 60 * 50, range(60 * 50))
    np.testing.assert_allclose(found, public_blip(60, 50, warmup), rtol=1e-5)
    assert found[-1] == pytest.approx(1e-6)


def test_a_cosine_by_epochs_is_that_of_blip():
    want = [1e-5 * 0.5 * (1 + math.cos(math.pi * epoch / 5)) for epoch in range(5) for _ in range(7)]
    np.testing.assert_allclose(values(EpochCosine(1e-5, 7), 35, range(35)), want, rtol=1e-5)
    assert values(EpochCosine(1e-5, 7, end=1e-6), 35, [34])[0] > 1e-6


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (EpochDecay(1e-3, 0), "epoch_steps is 0"),
        (EpochCosine(1e-3, 0), "epoch_steps is 0"),
        (EpochDecay(1e-3, 5, decay=1.1), "decay is 1.1"),
        (EpochDecay(1e-3, 5, start=1.0), "start 1.0"),
        (EpochDecay(1e-3, 5, end=1.0), "end is 1.0"),
    ],
)
def test_impossible_epochs_are_errors(schedule, message):
    with pytest.raises(InputError, match=message):
        schedule.build(100)
