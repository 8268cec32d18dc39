"""Captions of the `shapes` world: the share of which every word is true of the image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmax.data.example import Example
from vlmax.data.sources.shapes_scene import Scene, Thing
from vlmax.data.sources.shapes_truth import is_true
from vlmax.errors import InputError
from vlmax.evaluation.scores.captions import Captions, Scored


@dataclasses.dataclass(frozen=True)
class TrueWords:
    """`true`: the share of captions of which every word is true; see `shapes_truth`."""

    def check(self) -> None:
        """Needs nothing."""

    def reads(self, example: Example) -> Any:
        """The scene; raises `InputError` where the example is not one of `Shapes`."""
        scene = example.fields.get("scene")
        if not isinstance(scene, Scene):
            raise InputError(
                f"scoring captions: example {example.key!r} has no scene that its words could be held against; "
                "TrueWords scores the source Shapes alone, take it out of `scores`"
            )
        return dataclasses.asdict(scene)

    def score(self, captions: Captions, facts: Sequence[Any]) -> dict[str, Scored]:
        """The share."""
        scenes = [_scene(fact) for fact in facts]
        each = np.array([is_true(text, scene) for text, scene in zip(captions.written, scenes, strict=True)], float)
        return {"true": Scored(float(each.mean()), each)}


def _scene(fact: Any) -> Scene:
    return Scene(**{**fact, "objects": tuple(Thing(**thing) for thing in fact["objects"])})
