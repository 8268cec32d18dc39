"""Two pictures and a statement; questions about `shapes`."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vlmax.data.example import BadRecord, Example
from vlmax.data.image_pairs import ImagePairs
from vlmax.data.images import ImageTransform, Squash
from vlmax.data.sources.shapes import Shapes
from vlmax.data.sources.shapes_documents import ShapesText
from vlmax.data.sources.shapes_questions import ShapesQuestions
from vlmax.data.tokenizers import TrainedBpe
from vlmax.errors import InputError

TOKENIZER = TrainedBpe(ShapesText(), vocab_size=300, examples=100)
RNG = np.random.default_rng(0)


def pair(**changes):
    """A record as `NLVR2` gives it."""
    first, second = (Shapes(size=32).open()[i] for i in (0, 1))
    record = Example("a", first.image, ("both are red",), {"second_image": second.image, "label": 1, "pair": "b"})
    return dataclasses.replace(record, **changes)


def test_a_pair():
    make = ImagePairs(ImageTransform(Squash(32)), TOKENIZER, length=12)
    found = make(pair(), RNG)
    np.testing.assert_array_equal(found["image"], pair().image)
    np.testing.assert_array_equal(found["second_image"], pair().fields["second_image"])
    assert make.detokenize(found["text"][None]) == ["both are red"] and int(found["label"]) == 1
    assert {name: (x.shape, x.dtype) for name, x in found.items() if "/" not in name} == {
        name: (feature.shape, np.dtype(feature.dtype)) for name, feature in make.features().items()
    }
    assert int(dataclasses.replace(make, length=4)(pair(), RNG)["count/truncated"]) == 1


def test_what_is_no_pair():
    make = ImagePairs(ImageTransform(Squash(32)), TOKENIZER)
    for fields in ({}, {"label": 1}, {"second_image": pair().image, "label": "yes"}):
        with pytest.raises(InputError, match="reads the fields second_image and label"):
            make(pair(fields=fields), RNG)
    with pytest.raises(BadRecord, match="no statement"):
        make(pair(texts=()), RNG)
    with pytest.raises(BadRecord):
        make(pair(fields={"second_image": b"no picture", "label": 0}), RNG)


def test_questions_about_shapes():
    source = ShapesQuestions(Shapes("test", count=200, size=32))
    reader = source.open()
    assert source.name == "shapes-test-questions" and len(reader) == 200
    kinds = set()
    for index in range(200):
        example, scene = reader[index], Shapes("test", count=200, size=32).open()[index]
        fields = example.fields
        asked = (fields["answer_type"], fields["question"], fields["answer"])
        assert asked in scene.fields["questions"] and fields["answers"] == [fields["answer"]]
        assert example.texts == (fields["question"],) and fields["scene"] == scene.fields["scene"]
        np.testing.assert_array_equal(example.image, scene.image)
        kinds.add(fields["answer_type"])
    assert kinds == {"count", "color", "shape", "place", "relation", "yes/no"}
    assert reader[7].fields["question"] == source.open()[7].fields["question"]
