"""The words of the `shapes` world: captions, questions with answers, conversations. Every word is true of its scene.

The grammar is small on purpose. An object is `[size] color shape`; a caption is built from objects, one
count, place or relation, and the background. Its first caption determines a scene of kind `single`, `pair` or `group`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vlmax.data.sources.shapes_scene import COLORS, INVERSE, SHAPES, Draws, Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = {"cross": "crosses"}


def with_article(words: str) -> str:
    """`a red circle`, `an orange circle`."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def plural(shape: str) -> str:
    """`circles`, `crosses`."""
    return PLURALS.get(shape, shape + "s")


def named(thing: Thing, size: bool = False) -> str:
    """`a red circle`, or with its size `a large red circle`."""
    return with_article(f"{thing.size} {thing.color} {thing.shape}" if size else f"{thing.color} {thing.shape}")


def full_captions(scene: Scene) -> tuple[str, ...]:
    """Captions that say all there is to say about the scene."""
    on = f"on a {scene.background} background"
    first = scene.objects[0]
    if scene.kind == "single":
        thing, place = named(first, size=True), f"at the {scene.place(first)}"
        return f"{thing} {place} {on}", f"{on} {thing} {place}", f"{place} there is {thing} {on}"
    if scene.kind == "pair":
        a, b = named(first, size=True), named(scene.objects[1], size=True)
        relation = scene.relation(*scene.objects)
        assert relation is not None
        return f"{a} {relation} {b} {on}", f"{b} {INVERSE[relation]} {a} {on}", f"{on} {a} is {relation} {b}"
    if scene.kind == "group":
        many = f"{NUMBERS[len(scene.objects)]} {first.size} {first.color} {plural(first.shape)}"
        return f"{many} {on}", f"{on} there are {many}", f"a {scene.background} background with {many}"
    placed = [f"{named(o, size=True)} at the {scene.place(o)}" for o in scene.objects]
    listed, backwards = _listed(placed), _listed(placed[::-1])
    return f"{listed} {on}", f"{on} {backwards}", f"a {scene.background} background with {listed}"


def loose_captions(scene: Scene) -> tuple[str, ...]:
    """True captions that leave something out."""
    on = f"on a {scene.background} background"
    first = scene.objects[0]
    if scene.kind == "single":
        return named(first), f"a picture of {named(first)}", f"{named(first)} {on}"
    if scene.kind == "pair":
        second = scene.objects[1]
        return f"{named(first)} and {named(second)}", f"{named(first)} {scene.relation(first, second)} {named(second)}"
    if scene.kind == "group":
        return (f"{NUMBERS[len(scene.objects)]} {first.color} {plural(first.shape)}",)
    return (_listed([named(o) for o in scene.objects]),)


def _listed(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]])


def questions(scene: Scene) -> tuple[tuple[str, str, str], ...]:
    """(type, question, answer); the types are `count`, `color`, `shape`, `place`, `relation` and `yes/no`."""
    things = scene.objects
    first = things[0]
    draws = Draws(first.x * 4096 + first.y * 64 + len(things) + SHAPES.index(first.shape) * 1_000_003)
    asked = [
        ("count", "how many objects are there?", NUMBERS[len(things)]),
        ("count", f"how many {plural(first.shape)} are there?", NUMBERS[sum(o.shape == first.shape for o in things)]),
        ("color", "what color is the background?", scene.background),
    ]
    if len({o.color for o in things if o.shape == first.shape}) == 1:
        noun = first.shape if sum(o.shape == first.shape for o in things) == 1 else plural(first.shape)
        asked.append(("color", f"what color {'is' if noun == first.shape else 'are'} the {noun}?", first.color))
    if len({o.shape for o in things if o.color == first.color}) == 1:
        asked.append(("shape", f"what shape is {first.color}?", first.shape))
    if scene.kind in ("single", "several"):
        asked.append(("place", f"where is the {first.color} {first.shape}?", f"at the {scene.place(first)}"))
    if scene.kind == "pair":
        a, b = (f"the {o.color} {o.shape}" for o in things)
        relation = scene.relation(*things)
        assert relation is not None
        asked.append(("relation", f"what is {INVERSE[relation]} {a}?", named(things[1])))
        said = relation if draws.below(2) else INVERSE[relation]
        asked.append(("yes/no", f"is {a} {said} {b}?", "yes" if said == relation else "no"))
    asked.append(_is_there(scene, draws))
    return tuple(asked)


def _is_there(scene: Scene, draws: Draws) -> tuple[str, str, str]:
    """`is there a red circle?`, true half of the time."""
    first, present = scene.objects[0], {(o.color, o.shape) for o in scene.objects}
    if draws.below(2):
        return "yes/no", f"is there {named(first)}?", "yes"
    color, shape = first.color, first.shape
    while (color, shape) in present:
        if draws.below(2):
            color = tuple(COLORS)[draws.below(len(COLORS))]
        else:
            shape = SHAPES[draws.below(len(SHAPES))]
    return "yes/no", f"is there {with_article(f'{color} {shape}')}?", "no"


def conversation(scene: Scene) -> tuple[tuple[str, str], ...]:
    """A dialogue of (`user` | `assistant`, text) turns: a description first, then every question with its answer."""
    turns = [("user", "describe the picture."), ("assistant", full_captions(scene)[0])]
    for _, question, answer in questions(scene):
        turns += [("user", question), ("assistant", answer)]
    return tuple(turns)


class LazyFields(Mapping[str, object]):
    """The fields of an example, each made when it is asked for.

    `class` (`a red circle`, the first object), `kind`, `scene` (the `Scene`), `questions`, `conversation`, `group` (the
    first caption: equal where scenes are told apart by no word).
    """

    NAMES = ("class", "kind", "scene", "questions", "conversation", "group")

    def __init__(self, scene: Scene):
        self._scene = scene

    def __getitem__(self, name: str) -> object:
        scene = self._scene
        if name == "class":
            return named(scene.objects[0])
        if name in ("kind", "scene"):
            return scene.kind if name == "kind" else scene
        if name == "questions":
            return questions(scene)
        if name == "conversation":
            return conversation(scene)
        if name == "group":
            return full_captions(scene)[0]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.NAMES)

    def __len__(self) -> int:
        return len(self.NAMES)


def every_text() -> tuple[str, ...]:
    """Sentences that together hold every word of the world: what a small tokenizer is trained on."""
    from vlmax.data.sources.shapes import Shapes

    source = Shapes(kinds=("single", "pair", "group", "several"), max_objects=9)
    words = [f"{NUMBERS[n]} {with_article(f'{c} {s}')} {plural(s)}" for n in range(10) for c in COLORS for s in SHAPES]
    for index in range(2000):
        scene = source.scene(index)
        words += [*full_captions(scene), *loose_captions(scene), *(text for _, text in conversation(scene))]
    return tuple(words)
