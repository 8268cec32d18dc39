"""The `shapes` world as the web would have it: one text a picture, and some of the texts are of another picture."""

from __future__ import annotations

import dataclasses

from vlmax.data.example import Example
from vlmax.data.sources import shapes_text
from vlmax.data.sources.shapes import Shapes, ShapesReader
from vlmax.data.sources.shapes_scene import Draws, Scene, stream
from vlmax.data.sources.shapes_truth import is_true
from vlmax.errors import InputError


@dataclasses.dataclass(frozen=True)
class NoisyShapes:
    """Pictures of `shapes`, each with one text, which for a share of them is a caption of another scene.

    A text of another scene that happens to be true of the picture is drawn again, so that the field `wrong` (True or
    False) is the truth about every text. Further fields: `scene` and `group`, as in `Shapes`.

    Attributes:
      shapes: the pictures, and the scenes that other texts are of.
      share: of texts that are wrong, 0 to 1.
      seed: another seed is another choice of texts.
    """

    shapes: Shapes = Shapes()
    share: float = 0.4
    seed: int = 0

    @property
    def name(self) -> str:
        """`noisy-shapes-train` or `noisy-shapes-test`."""
        return f"noisy-{self.shapes.name}"

    def open(self) -> NoisyShapesReader:
        """A reader; raises `InputError` where a field has no meaning."""
        if not 0 <= self.share <= 1:
            raise InputError(f"opening the source {self.name}: share is {self.share}; it must be 0 to 1")
        if self.shapes.count < 2 and self.share:
            told = f"shapes.count is {self.shapes.count}; texts of other scenes need at least 2"
            raise InputError(f"opening the source {self.name}: {told}")
        return NoisyShapesReader(self, self.shapes.open())


@dataclasses.dataclass(frozen=True)
class NoisyShapesReader:
    """Random access to the pictures and their texts."""

    config: NoisyShapes
    reader: ShapesReader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Example:
        """The example at `index`."""
        example = self.reader[index]
        scene = example.fields["scene"]
        assert isinstance(scene, Scene)
        draws = stream(self.config.seed, "web", index)
        wrong = draws.below(1_000_000) < round(self.config.share * 1_000_000)
        text = self._of_another(draws, index, scene) if wrong else example.texts[draws.below(len(example.texts))]
        fields = {"wrong": wrong, "scene": scene, "group": example.fields["group"]}
        return Example(example.key, example.image, (text,), fields)

    def _of_another(self, draws: Draws, index: int, scene: Scene) -> str:
        """A caption of another scene that is not true of this one."""
        world = self.config.shapes
        while True:
            other = world.scene(draws.below(max(len(self), 2)))
            captions = shapes_text.full_captions(other)
            captions += shapes_text.loose_captions(other) if world.captions == "all" else ()
            if not is_true(text := captions[draws.below(len(captions))], scene):
                return text
