"""The smallest BLIP-2s of both stages, their batches and experiments round them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from tests import tiny
from tests.tiny_text import DECODERS
from vlmax.data.example import Feature, Features
from vlmax.data.pipeline import Data, Weighted
from vlmax.data.sources.shapes import Shapes
from vlmax.data.texts import IGNORED
from vlmax.experiment import Experiment
from vlmax.models.connectors.projection import Projection
from vlmax.models.connectors.qformer import QFormer
from vlmax.models.decoders.t5 import T5
from vlmax.systems.blip2 import BLIP2
from vlmax.systems.image_places import Placed
from vlmax.systems.image_prefix import ImagePrefix
from vlmax.systems.language_model import Causal, TextToText
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Constant

PAD, BOS, EOS, DECODE, VOCAB, LENGTH = 0, 1, 2, 30, 32, 6
QFORMER = QFormer(
    width=16, depth=4, heads=2, mlp=24, queries=3, cross_width=16, vocab=VOCAB, context=8, norm_epsilon=1e-6
)
NO_TEXT = dataclasses.replace(QFORMER, text=False, predicts=False, vocab=QFormer.vocab, context=QFormer.context)
STAGE_1 = BLIP2(tiny.vit(), QFORMER, embed=8, length=LENGTH, decode=DECODE, chunk=5, dtype="float32")


def stage_2(name: str = "opt", **changes: Any) -> ImagePrefix:
    """The second stage with one of the tiny language models; rows of eight tokens of text."""
    decoder = DECODERS[name]
    text = TextToText(decoder, 8, 6) if isinstance(decoder, T5) else Causal(decoder, 8)
    base = ImagePrefix(tiny.vit(), text, NO_TEXT, chunk=3, dtype="float32")
    return dataclasses.replace(base, **changes)


SYSTEMS = {
    "stage 1": STAGE_1,
    "opt": stage_2("opt"),
    "opt_350m": stage_2("opt_350m"),
    "t5": stage_2("t5"),
    "llama": stage_2("llama", lock=("image",)),
    "minigpt4": stage_2("llama", lock=("image", "connector", "text")),
    "instruct": stage_2("t5", connector=dataclasses.replace(QFORMER, predicts=False), instruction=5),
    "llava": stage_2(
        "llama",
        connector=None,
        projection=Projection(2),
        layout=Placed(2),
        patches_only=True,
        text=Causal(DECODERS["llama"], 16),
        lock=("image",),
    ),
}


def batch(system: BLIP2 | ImagePrefix, size: int = 8, seed: int = 0) -> Features:
    """Random pictures and texts of unequal lengths."""
    rng = np.random.default_rng(seed)
    found: Features = {}
    for name, feature in system.inputs().items():
        if name.startswith("image"):
            found[name] = rng.integers(0, 256, (size, *feature.shape), np.uint8)
        else:
            found[name] = rng.integers(3, 30, (size, *feature.shape)).astype(np.int32)
    lengths = {name: 2 + rng.integers(0, x.shape[1] - 1, size) for name, x in found.items() if name != "image"}
    if isinstance(system, BLIP2):
        place, ends = np.arange(LENGTH), lengths["text"][:, None] - 1
        text = np.where(place < ends, found["text"], np.where(place == ends, EOS, PAD))
        return {**found, "text": np.where(place == 0, BOS, text).astype(np.int32)}
    if "instruction" in found:
        real = np.arange(found["instruction"].shape[1]) < lengths["instruction"][:, None]
        found["instruction"] = np.where(real, found["instruction"], PAD).astype(np.int32)
    if isinstance(system.text, TextToText):
        found["input_segments"] = segments(found["inputs"], lengths["inputs"])
        found["target_segments"] = segments(found["targets"], lengths["targets"])
        learned = found["target_segments"] == 1
    else:
        found["segments"] = segments(found["text"], lengths["text"])
        learned = (found["segments"] == 1) & (np.arange(found["text"].shape[1]) >= 1)
    found["labels"] = np.where(learned, found["labels"], IGNORED).astype(np.int32)
    if "places" in found:
        count = system.image_tokens_each  # the first image at the second place, the other right after it
        place = np.arange(found["places"].shape[1])[None] - 1
        found["places"] = np.where((place >= 0) & (place < 2 * count), place, -1).repeat(size, 0).astype(np.int32)
        found["segments"] = np.ones_like(found["segments"])
        found["labels"] = np.where(found["places"] >= 0, IGNORED, found["labels"]).astype(np.int32)
    return found


def state_of(optimizer: Any) -> set[str]:
    """The parts of a system that an optimizer keeps something for."""
    paths = jax.tree_util.tree_leaves_with_path(optimizer)
    return {key.key for path, _ in paths for key in path if isinstance(key, jax.tree_util.DictKey)}


def segments(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """1 for as many tokens of each row, 0 after them."""
    return (np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Given:
    """A preprocess that only tells that it gives what a system reads."""

    system: BLIP2 | ImagePrefix

    def features(self):
        return {name: Feature(x.shape, np.dtype(x.dtype).name) for name, x in self.system.inputs().items()}

    def __call__(self, example, rng):
        raise NotImplementedError


def experiment(system: BLIP2 | ImagePrefix, size: int = 16, **changes: Any) -> Experiment:
    """An experiment whose batches come from `batch`."""
    base = Experiment(
        name="tiny_blip2",
        system=system,
        data=Data(sources=(Weighted(Shapes()),), preprocess=Given(system), batch_size=size),
        # A large epsilon, so that gradients which are but rounding do not become whole steps.
        optimizer=Optimizer(AdamW(eps=1e-4, weight_decay=0.1), Constant(peak=1e-2)),
        steps=10,
        frozen_dtype="float32",
    )
    return dataclasses.replace(base, **changes)
