import collections
import dataclasses
import importlib.util
import json
import zipfile

import cv2
import numpy as np
import pytest

from tests.shared import REPOSITORY, shared
from vlmax.command_line import load_file
from vlmax.data.example import BadRecord, Example, Preprocess, Tokenizes
from vlmax.data.images import ImageTransform, Squash
from vlmax.data.preprocess import ImageText
from vlmax.data.sources.shapes import Shapes
from vlmax.data.tokenizers import TrainedBpe
from vlmax.errors import InputError

emoji = load_file(REPOSITORY / "experiments" / "clip_emoji.py")


@pytest.fixture(scope="module")
def augmented():
    image, tokenizer = ImageTransform(Squash(64)), TrainedBpe(Shapes(), examples=50, vocab_size=300)
    return emoji.AugmentedEmoji(ImageText(image, tokenizer, length=40, group="codepoint"))


def drawing(side: int = 40) -> bytes:
    """A blue square in the middle of a transparent picture."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    edge = (64 - side) // 2
    pixels[edge:-edge, edge:-edge] = (200, 30, 30, 255)
    return cv2.imencode(".png", pixels)[1].tobytes()


def example(texts=("blue square", "box", "cube", "shape")) -> Example:
    return Example("noto/1", drawing(), texts, {"codepoint": "1"})


def test_the_same_generator_gives_the_same_features(augmented):
    one, two = (augmented(example(), np.random.default_rng(5)) for _ in range(2))
    other = augmented(example(), np.random.default_rng(6))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(one["image"], other["image"])
    assert set(augmented.features()) <= set(one)
    assert isinstance(augmented, Preprocess) and isinstance(augmented, Tokenizes)


def test_half_of_the_backgrounds_are_white_and_the_others_of_every_colour(augmented):
    plain = dataclasses.replace(augmented, color=0.0, saturation=(1.0, 1.0))
    corners = np.array([plain(example(), np.random.default_rng(i))["image"][0, 0] for i in range(300)])
    white = (corners == 255).all(axis=1)
    assert 0.4 < white.mean() < 0.6
    assert corners[~white].std(axis=0).min() > 50


def test_a_text_is_the_caption_one_to_four_keywords_or_both(augmented):
    rng = np.random.default_rng(0)
    drawn = collections.Counter()
    texts = ("caption", "a", "b", "c", "d", "e")
    for _ in range(5000):
        words = augmented.text(texts, rng).split(" ")
        captioned = words[0] == "caption"
        rest = words[captioned:]
        assert set(rest) <= set(texts[1:]) and len(set(rest)) == len(rest)
        drawn[captioned, len(rest)] += 1
    alone, both = (sum(drawn[captioned, n] for n in range(1, 5)) for captioned in (False, True))
    assert sum(drawn.values()) == drawn[True, 0] + alone + both == 5000
    assert 900 < alone < 1100 and 1900 < both < 2100 and len(drawn) == 9
    assert augmented.text(("caption",), rng) == "caption"


def test_the_picture_stays_in_sight(augmented):
    """Blue, though recoloured, is seen in every one; an unmoved, uncoloured picture is the picture."""
    for i in range(100):
        image = augmented(example(), np.random.default_rng(i))["image"].astype(int)
        middle = image[24:40, 24:40].reshape(-1, 3).mean(axis=0)
        assert middle[2] > middle[0] + 20
    still = dataclasses.replace(
        augmented, white=1.0, zoom=(1.0, 1.0), degrees=0.0, shear=0.0, color=0.0, saturation=(1.0, 1.0)
    )
    image = still(example(), np.random.default_rng(0))["image"]
    # Only the shift of at most a pixel is left.
    assert tuple(image[32, 32]) == (30, 30, 200) and tuple(image[2, 2]) == (255, 255, 255)


def test_a_record_without_picture_or_caption_is_bad(augmented):
    with pytest.raises(BadRecord, match="picture"):
        augmented(Example("a", None, ("x",), {"codepoint": "1"}), np.random.default_rng(0))
    with pytest.raises(BadRecord, match="caption"):
        augmented(Example("a", drawing(), (), {"codepoint": "1"}), np.random.default_rng(0))


def write_emoji(folder) -> None:
    """Two vendors; in the test vendor two pictures share a caption, and one is drawn as another is."""
    lines = []
    for vendor in ("noto", "twemoji"):
        with zipfile.ZipFile(folder / f"{vendor}.zip", "w") as archive:
            for i in range(5):
                archive.writestr(f"{i}.png", drawing(20 + 2 * i))
                row = {"id": f"{vendor}/{i}", "vendor": vendor, "codepoint": str(i), "caption": f"thing {max(i, 1)}"}
                row |= {"group": "all", "subgroup": f"kind-{i % 2}"}
                lines.append(row | ({"same_pixels_as": f"{vendor}/2"} if i == 3 else {}))
    (folder / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [{"id": str(i), "keywords": [f"word{i}", "thing"]} for i in range(5)]
    (folder / "codepoints.jsonl").write_text("".join(json.dumps(line) + "\n" for line in words))


def test_the_source_joins_keywords_and_leaves_out_what_cannot_be_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMAX_CACHE", str(tmp_path / "cache"))
    write_emoji(tmp_path)
    train = dataclasses.replace(emoji.get_source("train"), root=str(tmp_path)).open()
    assert [train[i].key for i in range(len(train))] == [f"noto/{i}" for i in range(5)]
    assert train[2].texts == ("thing 2", "word2", "thing") and train[2].fields["subgroup"] == "kind-0"
    test = dataclasses.replace(emoji.get_source("test"), root=str(tmp_path)).open()
    assert [test[i].key for i in range(len(test))] == ["twemoji/2", "twemoji/4"]
    assert test[0].texts == ("thing 2",)


def test_the_real_pictures_are_the_peers():
    root = str(shared("data", "emoji"))
    train, test = (dataclasses.replace(emoji.get_source(split), root=root).open() for split in emoji.SPLITS)
    assert (len(train), len(test)) == (4988, 1885)
    found = [test[i] for i in range(0, 1885, 29)]
    assert {e.fields["vendor"] for e in found} == {"twemoji"}
    assert len({e.texts for e in found}) == len(found)


def test_the_model_takes_no_more_flops_than_the_peers():
    spec = importlib.util.spec_from_file_location("peer_flops", shared("bench", "flops.py"))
    flops = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(flops)
    workload = json.loads(shared("bench", "workloads.json").read_text())["clip-emoji"]
    peer = flops.clip_forward(workload, 1) - flops.dense(1, workload["embed"], 1)
    assert sum(emoji.get_config().system.flops_per_example().values()) <= peer


def test_an_unknown_split_or_variant_is_said():
    with pytest.raises(InputError, match="trian"):
        emoji.get_source("trian")
    with pytest.raises(InputError, match="large"):
        emoji.get_config("large")
