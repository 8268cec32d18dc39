from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmax.data.order import FixedOrder, Order, choose_source, proportions
from vlmax.errors import InputError


@given(st.integers(1, 200), st.integers(0, 2**31), st.integers(0, 10**12))
def test_every_epoch_is_a_permutation(length, seed, epoch):
    order = Order([length], [1.0], seed)
    indices = [order[epoch * length + i] for i in range(length)]
    assert sorted(indices) == [(0, i) for i in range(length)]


def test_epochs_seeds_and_sources_differ():
    def epoch(seed, number, source=0):
        order = Order([100, 100], [1, 1], seed)
        return [i for s, i in (order[p] for p in range(number * 200, number * 200 + 200)) if s == source]

    orders = [epoch(0, 0), epoch(0, 1), epoch(1, 0), epoch(1, 1), epoch(0, 0, source=1)]
    assert len({tuple(o) for o in orders}) == 5
    agreement = [sum(a == b for a, b in zip(x, y, strict=True)) for x in orders for y in orders if x is not y]
    assert max(agreement) < 12  # chance gives about 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 10**15))
def test_a_mixture_is_exact_over_a_period_and_even_within(weights, start):
    whole = proportions([float(w) for w in weights])
    period = sum(whole)
    start -= start % period
    counts, seen = Counter(), {}
    for place in range(period):
        source, before = choose_source(start + place, whole)
        assert before == start // period * whole[source] + counts[source]  # nothing lost, nothing twice
        counts[source] += 1
        seen[source] = place
        for s, share in enumerate(whole):
            assert abs(counts[s] - (place + 1) * share / period) < len(whole)
    assert [counts[s] for s in range(len(whole))] == list(whole)


def test_proportions_are_what_was_written():
    assert proportions([0.7, 0.3]) == (7, 3)
    assert proportions([2.0]) == (1,)
    assert proportions([0.1, 0.2, 1e-3]) == (100, 200, 1)
    for wrong in ([0.0, 1.0], [-1.0], [float("nan")], [float("inf")]):
        with pytest.raises(InputError, match=r"data\.sources\[0\]\.weight"):
            proportions(wrong)


def test_too_short_and_too_long():
    for length in (0, 2**32):
        with pytest.raises(InputError, match=r"data\.sources\[0\] has"):
            Order([length], [1.0], 0)
    assert Order([2**32 - 1], [1.0], 0)[12345678901][1] < 2**32 - 1
    assert [Order([1], [1.0], 0)[p] for p in (0, 1, 10**12)] == [(0, 0)] * 3


def test_random_numbers_belong_to_position_and_attempt():
    order = Order([10], [1.0], 7)
    draws = {order.rng(p, a).random() for p in range(50) for a in range(3)}
    assert len(draws) == 150
    assert order.rng(3, 1).random() == Order([99], [1.0], 7).rng(3, 1).random()
    assert order.rng(3, 1).random() != Order([10], [1.0], 8).rng(3, 1).random()


def test_the_order_never_changes():
    """Checkpoints of old runs rely on it."""
    order = Order([1000, 50], [0.75, 0.25], 42)
    assert [order[p] for p in (0, 1, 2, 3, 10**9)] == [(0, 164), (0, 265), (0, 929), (1, 31), (0, 733)]
    assert order.substitute(5, 1) == 255
    assert np.array_equal(order.rng(5, 0).integers(1000, size=3), [255, 985, 66])


@settings(max_examples=20)
@given(st.integers(2, 1000), st.integers(0, 10**9), st.integers(1, 5))
def test_substitutes_are_of_the_same_source(length, position, attempt):
    assert 0 <= Order([length], [1.0], 0).substitute(position, attempt) < length


def test_an_evaluation_goes_from_first_to_last():
    assert [FixedOrder(5)[p] for p in range(3)] == [(0, 0), (0, 1), (0, 2)]
