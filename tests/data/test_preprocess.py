import dataclasses
import pickle

import numpy as np
import pytest

from vlmax.data.example import BadRecord, Example
from vlmax.data.images import ImageTransform, Squash
from vlmax.data.pipeline import Data, Weighted, host_batches
from vlmax.data.preprocess import ImageOnly, ImageText
from vlmax.data.sources.shapes import Shapes
from vlmax.data.tokenizers import TrainedBpe
from vlmax.errors import InputError

SHAPES = Shapes()
TOKENIZER = TrainedBpe(SHAPES, examples=200, vocab_size=384)
IMAGE = ImageTransform(Squash(32))
PREPROCESS = ImageText(IMAGE, TOKENIZER, length=24, group="class")
IMAGE_BYTES = np.full((40, 50, 3), 100, np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


def words(tokens):
    return PREPROCESS.opened.decode(tokens)


def test_features_are_what_is_declared():
    found = PREPROCESS(SHAPES.open()[0], rng())
    declared = PREPROCESS.features()
    assert set(found) == set(declared) == {"image", "text", "group"}
    for name, feature in declared.items():
        assert found[name].shape == feature.shape
        assert found[name].dtype == feature.dtype
        assert len(feature.axes) in (0, len(feature.shape))


def test_every_caption_is_taken_about_equally_often_or_only_the_first():
    example = Example("k", IMAGE_BYTES, ("red circle", "blue star", "green ring"), {"class": "c"})
    seen = [words(PREPROCESS(example, rng(i))["text"]) for i in range(300)]
    assert {t: abs(seen.count(t) - 100) < 40 for t in seen} == dict.fromkeys(example.texts, True)
    first = ImageText(IMAGE, TOKENIZER, 24, choose="first")
    assert {words(first(example, rng(i))["text"]) for i in range(20)} == {"red circle"}
    assert "group" not in first(example, rng())


def test_a_long_text_is_cut_at_its_end_and_counted():
    tokenizer = PREPROCESS.opened
    long = Example("k", IMAGE_BYTES, ("red circle " * 20,), {"class": "c"})
    found = PREPROCESS(long, rng())
    assert found["count/truncated"] == 1
    assert found["text"][0] == tokenizer.bos
    assert found["text"][-1] == tokenizer.eos
    fits = Example("k", IMAGE_BYTES, ("red circle",), {"class": "c"})
    assert "count/truncated" not in PREPROCESS(fits, rng())
    tokens = PREPROCESS(fits, rng())["text"]
    assert (tokens[-10:] == tokenizer.pad_id).all()
    np.testing.assert_array_equal(PREPROCESS.tokenize(["red circle"]), tokens[None])
    data = Data((Weighted(SHAPES),), ImageText(IMAGE, TOKENIZER, length=6), batch_size=8)
    assert host_batches(data, range(8), 0)[0].info.counts["truncated"] >= 6


def test_groups_are_equal_where_the_field_is():
    groups = {}
    reader = SHAPES.open()
    for index in range(400):
        example = reader[index]
        groups.setdefault(example.fields["class"], set()).add(int(PREPROCESS(example, rng())["group"]))
    assert all(len(g) == 1 for g in groups.values())
    assert len({g for s in groups.values() for g in s}) == len(groups)
    assert min(min(g) for g in groups.values()) >= 0
    with pytest.raises(InputError, match=r"data\.preprocess\.group is 'clas'.*class, conversation"):
        ImageText(IMAGE, TOKENIZER, 24, group="clas")(reader[0], rng())


def test_damage():
    with pytest.raises(BadRecord, match="no caption"):
        PREPROCESS(Example("k", IMAGE_BYTES), rng())
    with pytest.raises(BadRecord, match="no image"):
        PREPROCESS(Example("k", None, ("red",)), rng())
    with pytest.raises(BadRecord):
        PREPROCESS(Example("k", b"no image at all", ("red",)), rng())


@dataclasses.dataclass(frozen=True)
class Same:
    """Ten times one example."""

    example: Example
    name: str = "same"

    def open(self):
        return [self.example] * 10


@pytest.mark.parametrize(
    ("example", "told"), [(Example("k", IMAGE_BYTES), "no caption"), (Example("k", None, ("red",)), "no image")]
)
def test_pictures_without_texts_and_texts_without_pictures_are_no_data(example, told):
    data = Data((Weighted(Same(example)),), ImageText(IMAGE, TOKENIZER, 24), batch_size=8)
    with pytest.raises(InputError, match=f"the source 'same': .* records in a row are damaged, .* because {told}"):
        host_batches(data, range(8), 0)[0]


def test_the_tokenizer_is_opened_once_and_travels():
    opened = PREPROCESS.opened
    assert PREPROCESS.opened is opened
    travelled = pickle.loads(pickle.dumps(PREPROCESS))
    assert "opened" in travelled.__dict__
    assert travelled == PREPROCESS
    np.testing.assert_array_equal(travelled.tokenize(["a red circle"]), PREPROCESS.tokenize(["a red circle"]))


def test_image_only():
    alone = ImageOnly(IMAGE)
    example = Example("k", IMAGE_BYTES, ("red",))
    assert set(alone.features()) == {"image"}
    assert alone(example, rng())["image"].shape == (32, 32, 3)


def test_too_short_for_its_marks_is_told_before_a_run():
    with pytest.raises(InputError, match="length 1"):
        ImageText(IMAGE, TOKENIZER, length=1).features()
