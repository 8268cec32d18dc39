"""The smallest BLIP systems, their batches and experiments round them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tests import tiny
from tests.data.stand_ins import Numbers
from vlmax.data.example import Feature
from vlmax.data.pipeline import Data, Weighted
from vlmax.errors import InputError
from vlmax.experiment import Experiment
from vlmax.models.decoders.bert import BERT
from vlmax.models.encoders.resnet import ResNet
from vlmax.systems.blip import BLIP
from vlmax.systems.blip_alignment import Alignment
from vlmax.systems.blip_caption import BLIPCaption
from vlmax.systems.blip_model import MED
from vlmax.systems.blip_nlvr2 import BLIPNLVR2
from vlmax.systems.blip_retrieval import BLIPRetrieval
from vlmax.systems.blip_vqa import BLIPVQA
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Constant

IMAGE, LENGTH, VOCAB = 8, 6, 32
PAD, BEGIN, END, DECODE, ENCODE = 27, 28, 29, 30, 31  # words are 0 to 26
TEXT = BERT(width=16, depth=2, heads=2, mlp=32, vocab=VOCAB, vocab_multiple=8, context=8, token_types=0)


def model(**changes: Any) -> MED:
    """Image encoder and BERT in float32; the image's tokens are wider than the text's."""
    small = MED(
        image=tiny.vit(image=IMAGE, width=24, heads=4, pre_norm=False, patch_bias=True, norm_epsilon=1e-6),
        text=TEXT,
        pad=PAD,
        decode=DECODE,
        encode=ENCODE,
        dtype="float32",
    )
    return dataclasses.replace(small, **changes)


def resnet_model(**changes: Any) -> MED:
    """One whose image encoder has statistics; images of 32 pixels."""
    return model(image=ResNet(stem=2, depths=(1, 1, 1, 1), image=32), **changes)


def alignment(**changes: Any) -> Alignment:
    """A queue of three batches of 16, and a ramp of eight steps."""
    return dataclasses.replace(Alignment(embed=8, momentum=0.9, queue=48, ramp_steps=8, chunk=20), **changes)


SYSTEMS: dict[str, Any] = {
    "pretraining": BLIP(model=model(), alignment=alignment(), length=LENGTH, vocabulary_chunk=7),
    "retrieval": BLIPRetrieval(model=model(), alignment=alignment(floor=0.0), length=LENGTH),
    "caption": BLIPCaption(model=model(), length=LENGTH, vocabulary_chunk=7),
    "vqa": BLIPVQA(model=model(), length=LENGTH, answers=3, answer_length=4, vocabulary_chunk=7),
    "nlvr2": BLIPNLVR2(model=model(), length=LENGTH),
}


def texts(rng: np.random.Generator, shape: tuple[int, ...], length: int = LENGTH) -> np.ndarray:
    """Texts of one to length - 2 words with their marks."""
    tokens = rng.integers(0, PAD, (*shape, length)).astype(np.int32)
    ends = rng.integers(2, length, shape)[..., None]
    places = np.arange(length)
    tokens = np.where(places == 0, BEGIN, np.where(places < ends, tokens, np.where(places == ends, END, PAD)))
    return tokens.astype(np.int32)


def batch(name: str, rows: int = 16, seed: int = 0, image: int = IMAGE) -> dict[str, np.ndarray]:
    """Random pictures and texts; of retrieval two rows in three are of one image with another."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (2, rows, image, image, 3), np.uint8)
    text = texts(rng, (rows,))
    made: dict[str, Any] = {"image": pictures[0], "text": text}
    if name == "retrieval":
        made["group"] = rng.integers(0, rows, rows).astype(np.int32)
    if name == "caption":
        after = np.pad(text[:, 1:], ((0, 0), (0, 1)), constant_values=PAD)
        made["labels"] = np.where((after == PAD) | (np.arange(LENGTH) < 1), -100, after).astype(np.int32)
    if name == "vqa":
        weights = rng.random((rows, 3)).astype(np.float32)
        weights[:, 2] = 0
        made = {"image": pictures[0], "question": text, "answers": texts(rng, (rows, 3), 4), "answer_weights": weights}
    if name == "nlvr2":
        made |= {"second_image": pictures[1], "label": rng.integers(0, 2, rows).astype(np.int32)}
    return made


@dataclasses.dataclass(frozen=True)
class Given:
    """A preprocess that only tells what it would give."""

    system: Any

    def features(self):
        return {name: Feature(x.shape, str(x.dtype)) for name, x in self.system.inputs().items()}

    def __call__(self, example, rng):
        raise InputError("these features cannot be made")


def experiment(name: str, rows: int = 16, **changes: Any) -> Experiment:
    """An experiment that can be prepared; its data cannot be read."""
    system = changes.pop("system", SYSTEMS[name])
    base = Experiment(
        name=f"tiny_blip_{name}",
        system=system,
        data=Data(sources=(Weighted(Numbers()),), preprocess=Given(system), batch_size=rows),
        optimizer=Optimizer(AdamW(weight_decay=0.05), Constant(peak=3e-3)),
        steps=20,
    )
    return dataclasses.replace(base, **changes)
