import io
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmax.data.sources import json_members
from vlmax.data.sources.json_members import members

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def read(text):
    return list(members(io.BytesIO(text if isinstance(text, bytes) else text.encode())))


def expected(value):
    if isinstance(value, list):
        return [(None, element) for element in value]
    return [(n, v) for n, found in value.items() for v in (found if isinstance(found, list) else [found])]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(VALUES, max_size=4) | st.dictionaries(st.text(max_size=3), VALUES, max_size=4),
    st.integers(1, 7),
    st.sampled_from([None, 2]),
)
def test_whatever_the_window_the_members_are_those_of_the_file(value, chunk, indent):
    before = json_members.CHUNK
    json_members.CHUNK = chunk
    try:
        assert read(json.dumps(value, indent=indent, ensure_ascii=False)) == expected(value)
    finally:
        json_members.CHUNK = before


def test_a_mark_of_the_byte_order_is_no_part_of_it():
    assert read(b"\xef\xbb\xbf[1]") == [(None, 1)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is empty"), ("  \n", "it is empty"), ("3", "neither a JSON list"), ('"a"', "neither a JSON list"),
        ("[1, 2", "']' is missing, at character 5"), ("[1 2]", "']' is missing, at character 3"),
        ('{"a": [1, {"b": }]}', "not JSON .*at character 10"), ('{"a" 1}', "':' is missing"),
        ("{a: 1}", "name in quotes"),
        ('{"a": 1}\n{"a": 2}', "one JSON value a line"), ('[{"a": "b', "not JSON"), (b"[\xff]", "not UTF-8"),
        ("[" * 100_000, "not JSON"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_told_with_its_place(text, problem):
    with pytest.raises(ValueError, match=problem):
        read(text)


def test_memory_does_not_grow_with_the_file():
    element = json.dumps({"text": "x" * 1000})
    text = ('{"a": [' + ",".join([element] * 40_000) + "]}").encode()
    handle = io.BytesIO(text)
    tracemalloc.start()
    try:
        assert sum(1 for _ in members(handle)) == 40_000
        assert tracemalloc.get_traced_memory()[1] < 12e6 < len(text) / 3
    finally:
        tracemalloc.stop()
