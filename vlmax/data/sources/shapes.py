"""`shapes`: a procedural world of coloured shapes, rendered on the fly from an index, with no download.

A scene holds objects with a colour, a shape, a size and a position on a plain background. Which
(colour, shape) pairs training never shows is fixed (`is_unseen`); in the test split the first object of
every scene is such a pair, while each colour and each shape alone is common in training.
Everything is a function of (seed, split, index): integer arithmetic only, the same on every platform.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from vlmax.data.example import Example
from vlmax.data.sources import shapes_render, shapes_text
from vlmax.data.sources.shapes_scene import COLORS, SHAPES, Kind, Layout, Scene, make_scene, rgb, stream
from vlmax.errors import InputError

MINIMUM_SIZE = 24  # pixels; below it the shapes cannot be told apart


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The configuration of the source.

    Attributes:
      split: `train` never shows an unseen (colour, shape) pair; every scene of `test` does.
      count: how many examples; a larger count only adds examples at the end.
      size: width and height of the images in pixels.
      seed: another seed is another world of scenes with the same words.
      kinds: which scenes there are, drawn alike: `single` (one object at a place), `pair` (two objects in a
        relation), `group` (several equal objects), `several` (several different ones). One that is named twice comes
        twice as often.
      max_objects: how many objects a `group` or `several` scene has at most, 3 to 9.
      jitter: how far positions, radii and tints stray, 0 to 1; at 0 objects stand on a fixed grid, which is
        learned sooner. The words do not depend on it.
      captions: `all` gives captions that determine the scene and looser ones; `full` the determining ones only.
      distinct: leaves out scenes whose first caption an earlier one has: for retrieval.
    """

    split: Literal["train", "test"] = "train"
    count: int = 1_000_000
    size: int = 64
    seed: int = 0
    kinds: tuple[Kind, ...] = ("single", "pair", "group")
    max_objects: int = 4
    jitter: float = 1.0
    captions: Literal["all", "full"] = "all"
    distinct: bool = False

    @property
    def name(self) -> str:
        """`shapes-train` or `shapes-test`."""
        return f"shapes-{self.split}"

    def open(self) -> ShapesReader:
        """A reader; raises `InputError` where a field has no meaning."""
        sizes = self.count >= 1 and self.size >= MINIMUM_SIZE and 3 <= self.max_objects <= 9
        if not sizes or not self.kinds or not 0 <= self.jitter <= 1:
            raise InputError(
                f"opening the source {self.name}: count={self.count}, size={self.size}, kinds={self.kinds}, "
                f"max_objects={self.max_objects}, jitter={self.jitter}; count must be at least 1, size at least "
                f"{MINIMUM_SIZE} pixels, max_objects 3 to 9, jitter 0 to 1 and kinds not empty; change these of Shapes"
            )
        return ShapesReader(self, tuple(_distinct_indices(self)) if self.distinct else None)

    def scene(self, index: int) -> Scene:
        """The scene at `index`, before `distinct` leaves any out."""
        return make_scene(self.split, self.seed, index, self.kinds, Layout(self.size, self.max_objects, self.jitter))


class ShapesReader:
    """Random access to the rendered scenes; about 0.1 ms an example."""

    def __init__(self, config: Shapes, indices: tuple[int, ...] | None):
        self.config = config
        self.indices = indices

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, index: int) -> Example:
        """The example at `index`; its fields are those of `shapes_text.fields`."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.config.name} has {len(self)} examples, index {index} is outside")
        if self.indices is not None:
            index = self.indices[index]
        config, scene = self.config, self.config.scene(index)
        texts = shapes_text.full_captions(scene)
        if config.captions == "all":
            texts += shapes_text.loose_captions(scene)
        key = f"{config.split}-{config.seed}-{index}"
        return Example(key, render(scene, config.seed, index, config.jitter), texts, shapes_text.LazyFields(scene))


def render(scene: Scene, seed: int, index: int, jitter: float = 1.0) -> UInt8[np.ndarray, "size size 3"]:
    """The picture of a scene; seed and index choose the exact tint of each colour."""
    draws = stream(seed, "tint", index)
    patches = [(o.shape, o.x, o.y, o.radius, rgb(o.color, draws, jitter)) for o in scene.objects]
    return shapes_render.paint(scene.size, rgb(scene.background, draws, jitter), patches)


def _distinct_indices(config: Shapes) -> Iterator[int]:
    """The first `count` indices whose first captions differ."""
    seen: set[str] = set()
    for index in range(config.count * 20 + 10_000):
        caption = shapes_text.full_captions(config.scene(index))[0]
        if caption not in seen:
            seen.add(caption)
            yield index
            if len(seen) == config.count:
                return
    raise InputError(
        f"opening the source {config.name} with distinct captions: count={config.count}, but its kinds {config.kinds} "
        f"gave only {len(seen)} different first captions; set count to at most that, or allow more kinds"
    )


def class_names() -> tuple[str, ...]:
    """The 64 classes of `single` scenes, with their article: `a red circle`, `an orange star`; `fields["class"]`."""
    return tuple(shapes_text.with_article(f"{color} {shape}") for color in COLORS for shape in SHAPES)


def templates() -> tuple[str, ...]:
    """Templates for zero-shot classification, each with one `{}` for a class name."""
    return ("{}", "a picture of {}", "{} on a black background", "{} on a gray background", "{} on a white background")
