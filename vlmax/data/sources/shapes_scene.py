"""What is in a scene of the `shapes` world, drawn from (split, seed, index) with integers only."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Literal

COLORS = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 75, 225),
    "yellow": (240, 220, 45),
    "purple": (145, 55, 185),
    "orange": (245, 140, 30),
    "cyan": (60, 210, 225),
    "pink": (255, 100, 205),
}
BACKGROUNDS = {"black": (18, 18, 18), "gray": (125, 125, 125), "white": (238, 238, 238)}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "heart", "star")
SIZES = ("small", "large")
COLUMNS, ROWS = ("left", "", "right"), ("top", "", "bottom")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

Kind = Literal["single", "pair", "group", "several"]

_MASK = (1 << 64) - 1


class Draws:
    """A small stream of random integers (splitmix64, Steele et al. 2014), the same on every platform."""

    def __init__(self, state: int):
        self.state = state & _MASK

    def below(self, limit: int) -> int:
        """A number in `0 .. limit - 1`."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & _MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((z ^ (z >> 31)) * limit) >> 64

    def around(self, spread: int) -> int:
        """A number in `-spread .. spread`."""
        return self.below(2 * spread + 1) - spread


def stream(seed: int, purpose: str, index: int) -> Draws:
    """The random stream of one purpose at one index."""
    start = Draws((seed << 32) ^ zlib.crc32(purpose.encode()))
    return Draws((start.below(1 << 63) << 1) ^ (int(index) * 0xD1342543DE82EF95))  # NumPy's integers would overflow


@dataclasses.dataclass(frozen=True, slots=True)
class Thing:
    """One object: its words, its centre and radius in pixels (x to the right, y down)."""

    color: str
    shape: str
    size: str
    x: int
    y: int
    radius: int


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """The truth about one image: what captions and answers are checked against."""

    kind: Kind
    objects: tuple[Thing, ...]
    background: str
    size: int

    def place(self, thing: Thing) -> str:
        """Which ninth of the image the object's centre lies in: `top left`, `left`, `center`, ..."""
        row, column = ROWS[thing.y * 3 // self.size], COLUMNS[thing.x * 3 // self.size]
        return f"{row} {column}".strip() or "center"

    def relation(self, first: Thing, second: Thing) -> str | None:
        """How `first` lies to `second`; None where neither direction clearly outweighs the other."""
        dx, dy = first.x - second.x, first.y - second.y
        if abs(dx) >= 2 * abs(dy) and abs(dx) * 4 >= self.size:
            return "left of" if dx < 0 else "right of"
        if abs(dy) >= 2 * abs(dx) and abs(dy) * 4 >= self.size:
            return "above" if dy < 0 else "below"
        return None


def is_unseen(color: str, shape: str) -> bool:
    """Whether training never shows this pair: 8 of the 64, one for every colour and one for every shape."""
    return (tuple(COLORS).index(color) - SHAPES.index(shape)) % 8 == 3


PAIRS = {
    "train": tuple((c, s) for c in COLORS for s in SHAPES if not is_unseen(c, s)),
    "test": tuple((c, s) for c in COLORS for s in SHAPES if is_unseen(c, s)),
}
ALL_PAIRS = tuple((c, s) for c in COLORS for s in SHAPES)


def radius_range(size: str, image: int) -> tuple[int, int]:
    """Least and greatest radius in pixels of a small or large object in an image of `image` pixels."""
    return (image * 19 // 128, image * 20 // 128) if size == "small" else (image * 29 // 128, image * 31 // 128)


def rgb(color: str, draws: Draws, jitter: float) -> tuple[int, int, int]:
    """A tint of the named colour."""
    red, green, blue = COLORS.get(color) or BACKGROUNDS[color]
    spread = round(14 * jitter)
    return _byte(red + draws.around(spread)), _byte(green + draws.around(spread)), _byte(blue + draws.around(spread))


def _byte(value: int) -> int:
    return min(max(value, 0), 255)


@dataclasses.dataclass(frozen=True)
class Layout:
    """What scenes are made within: image size in pixels, most objects, and how far things stray (0 to 1)."""

    image: int
    max_objects: int
    jitter: float


def make_scene(split: str, seed: int, index: int, kinds: tuple[Kind, ...], layout: Layout) -> Scene:
    """The scene at an index; the same words whatever the image size and jitter."""
    draws = stream(seed, split, index)
    kind = kinds[draws.below(len(kinds))]
    background = tuple(BACKGROUNDS)[draws.below(len(BACKGROUNDS))]
    first = PAIRS[split][draws.below(len(PAIRS[split]))]
    others = PAIRS["train"] if split == "train" else ALL_PAIRS
    make = {"single": _single, "pair": _pair, "group": _group, "several": _several}[kind]
    return Scene(kind, make(draws, first, others, layout), background, layout.image)


def _thing(draws: Draws, pair: tuple[str, str], size: str, x: int, y: int, layout: Layout, spread: int) -> Thing:
    """An object near (x, y), both in 64ths of the image, moved by up to `spread` 64ths and kept inside."""
    low, high = radius_range(size, layout.image)
    radius = (low + high) // 2 if layout.jitter == 0 else low + draws.below(high - low + 1)

    def inside(place: int) -> int:
        moved = (place * 64 + draws.around(round(64 * spread * layout.jitter))) * layout.image // 4096
        return min(max(moved, radius), layout.image - radius)

    return Thing(*pair, size, inside(x), inside(y), radius)


GRID = (11, 32, 53)  # centres of the ninths, in 64ths


def _single(draws: Draws, first: tuple[str, str], others, layout: Layout) -> tuple[Thing, ...]:
    size, x, y = SIZES[draws.below(2)], GRID[draws.below(3)], GRID[draws.below(3)]
    return (_thing(draws, first, size, x, y, layout, 2),)


def _pair(draws: Draws, first: tuple[str, str], others, layout: Layout) -> tuple[Thing, ...]:
    dx, dy = tuple(RELATIONS.values())[draws.below(4)]
    second = _another(draws, others, {first})
    along = 32 + draws.around(round(8 * layout.jitter))  # where the two stand on the other axis
    sizes = SIZES[draws.below(2)], SIZES[draws.below(2)]
    centers = [(32 + sign * 17 * dx, along) if dx else (along, 32 + sign * 17 * dy) for sign in (1, -1)]
    pairs = (first, second)
    return tuple(_thing(draws, p, s, x, y, layout, 1) for p, s, (x, y) in zip(pairs, sizes, centers, strict=True))


def _group(draws: Draws, first: tuple[str, str], others, layout: Layout) -> tuple[Thing, ...]:
    count = 2 + draws.below(layout.max_objects - 1)
    size = SIZES[draws.below(2)] if count <= 4 else "small"
    return tuple(_thing(draws, first, size, x, y, layout, 1) for x, y in _cells(draws, count, size))


def _several(draws: Draws, first: tuple[str, str], others, layout: Layout) -> tuple[Thing, ...]:
    count = 3 + draws.below(layout.max_objects - 2)
    pairs = [first]
    while len(pairs) < count:
        pairs.append(_another(draws, others, set(pairs)))
    size = "large" if count <= 4 and draws.below(2) else "small"
    cells = _cells(draws, count, size)
    return tuple(_thing(draws, p, size, x, y, layout, 1) for p, (x, y) in zip(pairs, cells, strict=True))


def _another(draws: Draws, pairs, taken: set[tuple[str, str]]) -> tuple[str, str]:
    while (pair := pairs[draws.below(len(pairs))]) in taken:
        pass
    return pair


def _cells(draws: Draws, count: int, size: str) -> list[tuple[int, int]]:
    """Different cells of the grid; large objects stand in the corners, where they cannot touch."""
    line = GRID if size == "small" else (15, 49)
    cells = [(x, y) for y in line for x in line]
    return [cells.pop(draws.below(len(cells))) for _ in range(count)]
