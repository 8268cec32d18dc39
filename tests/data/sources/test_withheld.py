"""Pictures that are withheld: everything else stays."""

from __future__ import annotations

import numpy as np

from vlmax.data.example import Source
from vlmax.data.sources.shapes import Shapes
from vlmax.data.sources.shapes_documents import ShapesText
from vlmax.data.sources.withheld import Withheld


def test_only_the_pictures_are_gone():
    source = Shapes("test", count=5, size=32)
    seen, blind = source.open(), Withheld(source).open()
    assert isinstance(Withheld(source), Source) and Withheld(source).name == "shapes-test-withheld"
    assert len(blind) == 5
    for one, other in zip((seen[i] for i in range(5)), (blind[i] for i in range(5)), strict=True):
        assert (one.key, one.texts) == (other.key, other.texts) and other.fields["scene"] == one.fields["scene"]
        assert other.image.shape == (32, 32, 3) and np.unique(other.image).tolist() == [128]
        assert not np.array_equal(one.image, other.image)


def test_a_source_without_pictures_stays_as_it_is():
    source = ShapesText("train", count=2)
    assert Withheld(source).open()[1] == source.open()[1]
