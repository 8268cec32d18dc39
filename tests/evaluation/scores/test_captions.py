"""Results beside their references: what is missing, twice or strange."""

from __future__ import annotations

import json

import pytest

from vlmax.errors import InputError
from vlmax.evaluation.scores.captions import paired, read_results

REFERENCES = {7: ["a dog", "a brown dog"], 3: ["a cat"]}


def results(*pairs):
    return [{"image_id": image, "caption": caption} for image, caption in pairs]


def test_captions_stand_beside_their_references_in_the_references_order():
    found = paired(results((3, "a kitten"), (7, "A dog.")), REFERENCES)
    assert found.written == ("A dog.", "a kitten") and found.references == (("a dog", "a brown dog"), ("a cat",))
    assert found.tokens == ("a dog", "a kitten")


@pytest.mark.parametrize(
    ("given", "references", "message"),
    [
        (results((3, "a kitten")), REFERENCES, "1 of the reference's 2 images have no caption, the first is 7"),
        (results((3, "a"), (7, "b"), (3, "c")), REFERENCES, "entry 2 is a second caption of image 3"),
        (results((3, "a"), (7, "b"), (8, "c")), REFERENCES, "image 8, which the reference does not have"),
        ([{"image_id": 3}], REFERENCES, "must have the fields image_id and caption"),
        (["a"], REFERENCES, "must have the fields image_id and caption"),
        (results((3, 5), (7, "b")), REFERENCES, "has the caption 5"),
        (results((3, "a")), {3: []}, "image 3 of the reference has no text"),
        ([], {}, "no images"),
    ],
)
def test_what_is_wrong_is_told(given, references, message):
    with pytest.raises(InputError, match=message):
        paired(given, references)


def test_results_come_from_a_file(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results((3, "a"))))
    assert read_results(path) == results((3, "a"))
    path.write_text("{}")
    with pytest.raises(InputError, match="holds no list"):
        read_results(path)
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_results(tmp_path / "missing.json")
