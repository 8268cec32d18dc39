import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmax.data import tf_examples
from vlmax.data.example import BadRecord, Example
from vlmax.data.tf_examples import Kind, decode, encode, kinds_of_example, widen
from vlmax.errors import InputError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = st.text(st.characters(categories=["L", "N"]), min_size=1).filter(lambda n: n not in tf_examples.OWN)
made = st.builds(
    Example,
    key=st.text(),
    image=st.none() | st.binary(min_size=1),
    texts=st.lists(st.text(), max_size=3).map(tuple),
    fields=st.dictionaries(names, json_values, max_size=4),
)


@given(st.lists(made, min_size=1, max_size=4))
def test_examples_read_back_as_they_were(given_examples):
    kinds = kinds_of_example(given_examples[0])
    for example in given_examples[1:]:
        kinds = widen(kinds, kinds_of_example(example))
    for example in given_examples:
        record = encode(example, kinds)
        assert record == encode(example, kinds)
        row = decode(record, kinds)
        assert row.pop("key") == example.key and row.pop("image") == (example.image or b"")
        assert row.pop("texts") == list(example.texts)
        absent = {n: None for n in row if n not in example.fields}
        assert row == dict(example.fields) | absent
        assert all(type(row[n]) is type(v) for n, v in example.fields.items())


@given(st.lists(made, min_size=2, max_size=5), st.randoms())
def test_features_do_not_depend_on_the_order(given_examples, random):
    def widened(examples):
        kinds = kinds_of_example(examples[0])
        for example in examples[1:]:
            kinds = widen(kinds, kinds_of_example(example))
        return kinds

    shuffled = random.sample(given_examples, len(given_examples))
    assert widened(given_examples) == widened(shuffled) == widened([*given_examples, *shuffled])


@given(made)
def test_features_describe_themselves_in_features_json(example):
    import json

    kinds = kinds_of_example(example)
    described = json.dumps(tf_examples.features(kinds).to_json()).encode()
    assert tf_examples.kinds_in(described) == kinds


@given(st.binary(max_size=200))
def test_any_bytes_are_an_example_or_a_bad_record(record):
    try:
        decode(record, {"image": Kind("image"), "key": Kind("text"), "texts": Kind("text", many=True)})
        decode(record, None)
    except BadRecord as error:
        assert str(error)


def test_pixels_are_written_without_loss():
    import cv2

    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    example = Example("a", pixels)
    row = decode(encode(example, kinds_of_example(example)), kinds_of_example(example))
    assert (cv2.imdecode(np.frombuffer(row["image"], np.uint8), cv2.IMREAD_COLOR)[..., ::-1] == pixels).all()


def test_numpy_and_nested_fields_become_plain_values():
    fields = {"a": np.int32(3), "b": np.float64(0.1), "c": np.arange(3), "d": {"e": np.float32(0.5)}}
    example = Example("a", None, (), fields)
    kinds = kinds_of_example(example)
    assert [kinds[n].name for n in "abcd"] == ["int", "float64 bytes", "json", "json"]
    row = decode(encode(example, kinds), kinds)
    assert {n: row[n] for n in "abcd"} == {"a": 3, "b": 0.1, "c": [0, 1, 2], "d": {"e": 0.5}}


def test_names_that_clash_are_renamed_or_an_error():
    kinds = kinds_of_example(Example("a", None, (), {"key": 1, "a/b": 2}))
    assert kinds["key_"].name == "int" and kinds["a_b"].name == "int"
    with pytest.raises(InputError, match="both be the feature"):
        kinds_of_example(Example("a", None, (), {"a/b": 1, "a_b": 2}))
    with pytest.raises(InputError, match="cannot be written as JSON"):
        example = Example("a", None, (), {"x": b"bytes"})
        encode(example, kinds_of_example(example))
