"""The smallest CLIP, its batches and an experiment round it: what compiles in seconds and still has every part."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from tests.data.stand_ins import Numbers
from vlmax.data.example import Feature
from vlmax.data.pipeline import Data, Weighted
from vlmax.errors import InputError
from vlmax.experiment import Experiment
from vlmax.models.encoders.resnet import ModifiedResNet
from vlmax.models.encoders.text import TextEncoder
from vlmax.models.encoders.vit import ViT
from vlmax.systems.clip import CLIP
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Constant

IMAGE, CONTEXT, VOCAB = 8, 6, 32


def vit(**changes: Any) -> ViT:
    """An image encoder of four patches."""
    return dataclasses.replace(ViT(image=IMAGE, patch=4, width=16, depth=1, heads=2, mlp=32), **changes)


def text(**changes: Any) -> TextEncoder:
    """A text encoder of one layer."""
    small = TextEncoder(width=16, depth=1, heads=2, mlp=32, vocab=VOCAB, context=CONTEXT)
    return dataclasses.replace(small, **changes)


def clip(**changes: Any) -> CLIP:
    """A system in float32."""
    return dataclasses.replace(CLIP(image=vit(), text=text(), embed=8, dtype="float32"), **changes)


def resnet_clip(**changes: Any) -> CLIP:
    """A system whose image encoder has batch statistics and ends in the joint space."""
    image = ModifiedResNet(stem=4, depths=(1, 1, 1, 1), heads=4, output=8, image=32)
    return clip(image=image, image_projection=False, **changes)


def batch(size: int, image: int = IMAGE, seed: int = 0) -> dict[str, np.ndarray]:
    """Random pictures and texts, the end mark (the highest id) in each text."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB - 1, (size, CONTEXT)).astype(np.int32)
    tokens[np.arange(size), rng.integers(1, CONTEXT, size)] = VOCAB - 1
    return {"image": rng.integers(0, 256, (size, image, image, 3), np.uint8), "text": tokens}


@dataclasses.dataclass(frozen=True)
class TinyTokenizer:
    """Stands in for a tokenizer where only its numbers matter."""

    vocab_size: int = VOCAB
    eos: int = VOCAB - 1
    bos: int | None = None
    pad_id: int = 0


@dataclasses.dataclass(frozen=True)
class TinyFeatures:
    """A preprocess that only tells what it would give."""

    image: int = IMAGE
    length: int = CONTEXT
    text: str = "text"
    dtype: str = "int32"
    opened: TinyTokenizer = TinyTokenizer()

    def features(self):
        return {"image": Feature((self.image,) * 2 + (3,), "uint8"), self.text: Feature((self.length,), self.dtype)}

    def __call__(self, example, rng):
        raise InputError("these features cannot be made")


def experiment(**changes: Any) -> Experiment:
    """An experiment that can be prepared; its data cannot be read."""
    base = Experiment(
        name="tiny",
        system=clip(),
        data=Data(sources=(Weighted(Numbers()),), preprocess=TinyFeatures(), batch_size=32),
        optimizer=Optimizer(AdamW(weight_decay=0.1), Constant(peak=1e-2)),
        steps=10,
    )
    return dataclasses.replace(base, **changes)


def with_data(base: Experiment, **changes: Any) -> Experiment:
    """The experiment with other fields of `data`."""
    return dataclasses.replace(base, data=dataclasses.replace(base.data, **changes))


def copied(tree: Any) -> Any:
    """Arrays on the host that no donated buffer lies under."""
    return jax.tree.map(np.array, tree)
