from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmax.decoding.sampling import plan_and_knobs
from vlmax.decoding.settings import Generation
from vlmax.decoding.stopping import ends, stop_strings

PIECES = [b"", b"a", b"b", b"ab", b"ba", b"aab", b"\xc3", b"\xa9", b"stop", b"opera", b"st", b"las", b"topper"]


def first_stop(strings, tokens):
    """How many tokens there are when a string is complete, by looking at the whole text; None if none is."""
    text = b""
    for count, token in enumerate(tokens, 1):
        text += PIECES[token]
        if any(string.encode() in text for string in strings):
            return count
    return None


def found(strings, tokens):
    stops = stop_strings(strings, PIECES)
    states = stops.start(1)
    for count, token in enumerate(tokens, 1):
        states = stops.after(states, jnp.array([token]))
        if stops.complete(states)[0]:
            return count
    return None


@given(
    st.lists(st.text(alphabet="abé", min_size=1, max_size=5), min_size=1, max_size=3),
    st.lists(st.integers(0, len(PIECES) - 1), max_size=12),
)
@settings(max_examples=150, deadline=None)
def test_a_string_is_found_when_its_last_byte_is_there(strings, tokens):
    assert found(strings, tokens) == first_stop(strings, tokens)


@pytest.mark.parametrize(
    ("pieces", "count"),
    [
        ([b"st", b"opera"], 2),
        ([b"stop"], 1),
        ([b"las", b"topper"], 2),
        ([b"st", b"a", b"opera"], None),
        ([b"st", b"", b"opera", b"a"], 3),
    ],
)
def test_a_string_may_begin_and_end_within_tokens(pieces, count):
    assert found(["stop"], [PIECES.index(piece) for piece in pieces]) == count


def test_a_complete_string_stays_complete():
    stops = stop_strings(["ab", "é"], PIECES)
    states = stops.start(2, 3)
    assert states.shape == (2, 3, 2) and not stops.complete(states).any()
    for token in (3, 1, 1):
        states = stops.after(states, jnp.full((2, 3), token))
        assert stops.complete(states).all()


def test_marks_end_a_text():
    plan, _ = plan_and_knobs(Generation(), (2, 5))
    done, states = ends(jnp.array([[1, 2], [5, 0]]), None, plan, None)
    assert done.tolist() == [[False, True], [True, False]] and states is None
    plan, _ = plan_and_knobs(Generation(), ())
    assert not np.any(ends(jnp.array([1, 2]), None, plan, None)[0])
    stops = stop_strings(["ab"], PIECES)
    done, states = ends(jnp.array([3, 2]), stops.start(2), plan, stops)
    assert done.tolist() == [True, False] and states.tolist() == [[2], [0]]
