"""A source whose texts' truth can be seen in the pictures, and a judge that sees it, without a model."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vlmax.bootstrapping.judging import Verdicts
from vlmax.data.example import BadRecord, Example, Feature
from vlmax.sharding.mesh import Mesh

GONE, TORN = 7, 13
"""Records that cannot be read, and whose picture cannot be decoded."""


@dataclasses.dataclass(frozen=True)
class Greys:
    """Record i is a picture of grey `i % 200`; its texts name the grey, wrongly where i is a multiple of 3."""

    count: int = 50
    texts: int = 1
    damaged: bool = True
    name: str = "greys"

    def open(self):
        return self

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if self.damaged and index == GONE:
            error = BadRecord("gone")
            error.key = f"k{index}"
            raise error
        picture = np.full((6, 6, 3), index % 200, np.uint8)
        if self.damaged and index == TORN:
            return Example(f"k{index}", b"\xff\xd8 torn", ("x",), {"number": index})
        texts = tuple(f"grey {index % 200 + (index % 3 == 0)} <{n}>" for n in range(self.texts if index != 5 else 0))
        return Example(f"k{index}", picture, texts, {"number": index, "odd": {"deep": [index]} if index % 2 else None})


@dataclasses.dataclass(frozen=True)
class Grey:
    """Features: the grey, and the number in each text."""

    most: int = 2

    def features(self):
        return {"grey": Feature((), "int32"), "told": Feature((self.most,), "int32")}

    def __call__(self, example, rng):
        if isinstance(example.image, bytes):
            raise BadRecord("damaged JPEG")
        told = [int(text.split()[1]) for text in example.texts[: self.most]]
        return {
            "grey": np.int32(example.image[0, 0, 0]),
            "told": np.asarray(told + [0] * (self.most - len(told)), np.int32),
        }


class SeesGrey:
    """Matches are sure or impossible; of each fifth picture the captioner writes nonsense, of each eleventh nothing."""

    def __init__(self, most=2, fail_at=None):
        self.preprocess, self.seeds, self.fail_at = Grey(most), [], fail_at

    def __call__(self, batch, seed):
        if self.fail_at is not None and len(self.seeds) == self.fail_at:
            raise KeyboardInterrupt
        self.seeds.append(seed)
        whole = jax.jit(lambda *x: x, out_shardings=NamedSharding(batch["grey"].sharding.mesh, PartitionSpec()))
        grey, told, valid = map(np.asarray, whole(*(batch[name] for name in ("grey", "told", "valid"))))
        written = ["" if g % 11 == 0 else f"grey {g} of {seed}" if g % 5 else "nonsense" for g in grey.tolist()]
        synthetic = np.array([0.25 if w == "nonsense" else 0.75 for w in written], np.float32)
        return Verdicts(valid, np.where(told == grey[:, None], 0.9, 0.1).astype(np.float32), written, synthetic)


def mesh(devices=2):
    return Mesh().build(jax.devices()[:devices])
