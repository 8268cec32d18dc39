"""A source without its pictures: what a model makes of its prompts alone, to hold its scores against."""

from __future__ import annotations

import dataclasses

import numpy as np

from vlmax.data.decode import Decoder, open_picture
from vlmax.data.example import Example, Reader, Source


@dataclasses.dataclass(frozen=True)
class Withheld:
    """The examples of a source with an even grey in the place of every picture, of the same size.

    `Captioning(Withheld(Shapes("test")), ..., name="blind")` is the blind baseline of a captioner.
    """

    source: Source

    @property
    def name(self) -> str:
        """The source's own name, and that its pictures are withheld."""
        return f"{self.source.name}-withheld"

    def open(self) -> WithheldReader:
        """Opens the source."""
        return WithheldReader(self.source.open())


@dataclasses.dataclass(frozen=True)
class WithheldReader:
    """Random access to the examples."""

    reader: Reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Example:
        """The example at `index`, its texts and fields as they are."""
        example = self.reader[index]
        if example.image is None:
            return example
        picture = open_picture(example.image, Decoder())
        return dataclasses.replace(example, image=np.full((picture.height, picture.width, 3), 128, np.uint8))
