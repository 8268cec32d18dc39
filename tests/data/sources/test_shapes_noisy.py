import dataclasses
import pickle

import pytest

from vlmax.data.sources.shapes import Shapes
from vlmax.data.sources.shapes_noisy import NoisyShapes
from vlmax.data.sources.shapes_truth import is_true
from vlmax.errors import InputError


@pytest.mark.parametrize(
    "shapes", [Shapes(count=600, size=24), Shapes("test", 600, 24, captions="full", kinds=("several",))]
)
def test_the_share_of_wrong_texts_and_the_truth_about_each(shapes):
    source = NoisyShapes(shapes)
    reader = pickle.loads(pickle.dumps(source.open()))
    found = [reader[i] for i in range(len(reader))]
    assert all(len(e.texts) == 1 and is_true(e.texts[0], e.fields["scene"]) != e.fields["wrong"] for e in found)
    assert 0.33 < sum(e.fields["wrong"] for e in found) / 600 < 0.47
    clean = shapes.open()
    assert all((e.image == clean[i].image).all() and e.key == clean[i].key for i, e in enumerate(found[:20]))
    assert all(e.texts[0] in clean[i].texts for i, e in enumerate(found) if not e.fields["wrong"])
    assert [reader[i].texts for i in range(50)] == [e.texts for e in found[:50]]
    other = dataclasses.replace(source, seed=1).open()
    assert [other[i].texts for i in range(50)] != [e.texts for e in found[:50]]


def test_none_or_all_may_be_wrong_and_mistakes():
    shapes = Shapes(count=40, size=24)
    for share in (0.0, 1.0):
        reader = NoisyShapes(shapes, share).open()
        assert {reader[i].fields["wrong"] for i in range(40)} == {bool(share)}
    for bad in (NoisyShapes(shapes, 1.5), NoisyShapes(Shapes(count=1))):
        with pytest.raises(InputError, match="noisy-shapes-train"):
            bad.open()
