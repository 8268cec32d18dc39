"""Every caption of the world is true of its own scene; what is changed in it is not."""

from __future__ import annotations

import itertools

import pytest

from vlmax.data.sources.shapes import Shapes
from vlmax.data.sources.shapes_scene import COLORS, Scene, Thing
from vlmax.data.sources.shapes_text import full_captions, loose_captions
from vlmax.data.sources.shapes_truth import is_true

WORLD = Shapes("train", 10_000, kinds=("single", "pair", "group", "several"), max_objects=6)
SCENES = [WORLD.scene(i) for i in range(400)]


def test_every_caption_is_true_of_its_scene():
    # Of a group `a picture of a red circle` and the like are not written.
    assert all(is_true(text, scene) for scene in SCENES for text in full_captions(scene) + loose_captions(scene))
    assert {scene.kind for scene in SCENES} == {"single", "pair", "group", "several"}


def test_captions_of_other_scenes_are_rarely_true():
    wrong = [is_true(full_captions(b)[0], a) for a, b in itertools.pairwise(SCENES)]
    assert sum(wrong) == 0


def test_no_word_may_be_another():
    """Each colour, shape, size, place, number and background that is put in another's place is noticed."""
    swaps = {
        "small": "large",
        "large": "small",
        "left": "right",
        "right": "left",
        "top": "bottom",
        "bottom": "top",
        "above": "below",
        "below": "above",
        "two": "three",
        "three": "four",
        "four": "two",
        "black": "white",
        "gray": "black",
        "white": "gray",
        "circle": "square",
        "square": "ring",
        "star": "heart",
        "heart": "star",
    }
    swaps |= dict(zip(COLORS, [*list(COLORS)[1:], "red"], strict=True))
    changed = 0
    for scene in SCENES:
        for text in full_captions(scene):
            words = text.split()
            for i, word in enumerate(words):
                other = [*words[:i], swaps.get(word, word), *words[i + 1 :]]
                if other != words:
                    changed += 1
                    assert not is_true(" ".join(other), scene), (" ".join(other), scene)
    assert changed > 2000


PAIR = Scene(
    "pair", (Thing("red", "circle", "large", 10, 32, 8), Thing("blue", "star", "small", 54, 32, 5)), "black", 64
)
GROUP = Scene("group", tuple(Thing("red", "ring", "small", x, 10, 5) for x in (10, 32, 54)), "white", 64)


@pytest.mark.parametrize(
    ("scene", "text", "true"),
    [
        (PAIR, "a red circle", True),
        (PAIR, "A red circle.", True),
        (PAIR, "a red circle left of a small blue star on a black background", True),
        (PAIR, "a small red circle left of a blue star", False),
        (PAIR, "a blue star left of a red circle", False),
        (PAIR, "there is a red circle at the left and a blue star at the right", True),
        (PAIR, "a red circle and a red circle", False),
        (PAIR, "a red circle and a green star", False),
        (PAIR, "a red circle on a white background", False),
        (PAIR, "a picture of a red circle on a black background", True),
        (PAIR, "a red circle on a", False),
        (PAIR, "a red circle red", False),
        (PAIR, "red circle", False),
        (PAIR, "a red dog", False),
        (PAIR, "", False),
        (PAIR, "a black background with a red circle , a blue star", True),
        (GROUP, "three small red rings", True),
        (GROUP, "there are three red rings on a white background", True),
        (GROUP, "two red rings", False),
        (GROUP, "a red ring", False),
        (GROUP, "three red ring", False),
        (GROUP, "three large red rings", False),
    ],
)
def test_what_is_said_must_be_so(scene, text, true):
    assert is_true(text, scene) is true
