"""Whether a caption of the `shapes` world is true: every word of it is read, and what it says held against the scene.

What is read is the language of `shapes_text`, whoever writes it: a model may say anything of it about any scene. A word
outside of it, or a sentence that ends too soon, is not true. `a red circle` says that there is one, not that there are
three; and things that a text speaks of as several are several.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmax.data.sources.shapes_scene import BACKGROUNDS, COLORS, RELATIONS, SHAPES, SIZES, Scene, Thing
from vlmax.data.sources.shapes_text import NUMBERS, plural

PLURALS = {plural(shape): shape for shape in SHAPES}
PLACES = tuple(
    f"at the {place}"
    for place in ("top left", "top right", "bottom left", "bottom right", "top", "bottom", "left", "right", "center")
)


def is_true(caption: str, scene: Scene) -> bool:
    """Whether every word of a caption is true of a scene."""
    text = _Text(caption.lower().replace(",", " , ").rstrip(" .").split())
    try:
        _read(text, scene)
    except _NotTrue:
        return False
    return text.place == len(text.words)


class _NotTrue(Exception):
    """The words say what is not so, or nothing in this language."""


def _say(true: bool) -> None:
    if not true:
        raise _NotTrue


class _Text:
    """Words, read from left to right."""

    def __init__(self, words: Sequence[str]):
        self.words, self.place = list(words), 0

    def take(self, *phrases: str) -> str | None:
        """The first of these phrases that comes next, which is then read; None where none does."""
        for phrase in phrases:
            words = phrase.split()
            if self.words[self.place : self.place + len(words)] == words:
                self.place += len(words)
                return phrase
        return None

    def need(self, *phrases: str) -> str:
        """As `take`, but one of them must come."""
        found = self.take(*phrases)
        if found is None:
            raise _NotTrue
        return found


def _read(text: _Text, scene: Scene) -> None:
    """`[on a black background] [at the left there is] THINGS [on a black background]`, and other openings."""
    backgrounds = [f"on a {name} background" for name in BACKGROUNDS]
    before = text.take(*backgrounds, *(f"a {name} background with" for name in BACKGROUNDS))
    place = text.take(*(f"{place} there is" for place in PLACES))
    if place is None:
        text.take("there is", "there are", "a picture of")
    things = _things(text, scene)
    after = text.take(*backgrounds)
    _say(all(said is None or f" {scene.background} " in said for said in (before, after)))
    _say(place is None or all(f"at the {scene.place(thing)} there is" == place for thing in things))


def _things(text: _Text, scene: Scene) -> list[Thing]:
    """Things joined by `,` and `and`, none of them named twice."""
    found: list[Thing] = []
    while True:
        number = text.take(*NUMBERS[2:])
        things = _one_or_two(text, scene) if number is None else _group(text, scene, NUMBERS.index(number))
        _say(not any(thing in found for thing in things))
        found += things
        if text.take(", and", ",", "and") is None:
            return found


def _group(text: _Text, scene: Scene, number: int) -> list[Thing]:
    """`small red circles`, after their number."""
    size, color = text.take(*SIZES), text.need(*COLORS)
    things = _all(scene, size, color, PLURALS[text.need(*PLURALS)])
    _say(len(things) == number)
    return things


def _one_or_two(text: _Text, scene: Scene) -> list[Thing]:
    """`a red circle`, also `at the left`, or `[is] left of a blue square`."""
    thing = _one(text, scene)
    place = text.take(*PLACES)
    _say(place in (None, f"at the {scene.place(thing)}"))
    relation = text.take(*RELATIONS, *(f"is {relation}" for relation in RELATIONS))
    if relation is None:
        return [thing]
    other = _one(text, scene)
    _say(scene.relation(thing, other) == relation.removeprefix("is "))
    return [thing, other]


def _one(text: _Text, scene: Scene) -> Thing:
    """`a [large] red circle`, of which there is one and no more."""
    text.need("a", "an")
    size, color = text.take(*SIZES), text.need(*COLORS)
    things = _all(scene, size, color, text.need(*SHAPES))
    _say(len(things) == 1)
    return things[0]


def _all(scene: Scene, size: str | None, color: str, shape: str) -> list[Thing]:
    return [o for o in scene.objects if (o.color, o.shape) == (color, shape) and size in (None, o.size)]
