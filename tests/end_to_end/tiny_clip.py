"""The smallest CLIP that trains from end to end: what the end-to-end tests start as real processes.

    python -m vlmax.train --config tests/end_to_end/tiny_clip.py[:variant] --workdir DIR

Sizes divide for eight devices on `fsdp`, or two on each of `data`, `fsdp` and `tensor`.
Compiles in seconds on one CPU core.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import jax.numpy as jnp

from vlmax.data.images import ImageTransform, Squash
from vlmax.data.pipeline import Data, Weighted
from vlmax.data.preprocess import ImageText
from vlmax.data.sources.shapes import Shapes, class_names
from vlmax.data.sources.table import Table
from vlmax.data.sources.webdataset import WebDataset
from vlmax.data.tokenizers import TrainedBpe
from vlmax.evaluation.retrieval import Retrieval
from vlmax.evaluation.zero_shot import ZeroShot
from vlmax.experiment import Checkpoints, Experiment, Reports, unknown_variant
from vlmax.models.encoders.text import TextEncoder
from vlmax.models.encoders.vit import ViT
from vlmax.systems.clip import CLIP
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Cosine

SIZE, LENGTH, VOCAB = 32, 16, 264
BATCH, STEPS = 16, 24
RECORDS = "VLMAX_TEST_RECORDS"  # names the folder that the variants `tars` and `table` read
VARIANTS = ("base", "evaluated", "slow", "stuck", "breaks", "tars", "table")


@dataclasses.dataclass(frozen=True)
class SlowShapes(Shapes):
    """Shapes whose every record takes a while, so that a run lasts long enough to be interrupted."""

    seconds: float = 0.006
    """What a record takes."""
    stuck: int | None = None
    """The index of a record that never comes."""

    def open(self) -> SlowReader:
        """A reader that takes its time."""
        return SlowReader(super().open(), self.seconds, self.stuck)


class SlowReader:
    """Delays what another reader gives."""

    def __init__(self, reader, seconds: float, stuck: int | None):
        self.reader, self.seconds, self.stuck = reader, seconds, stuck

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int):
        time.sleep(3600 if index == self.stuck else self.seconds)
        return self.reader[index]


@dataclasses.dataclass(frozen=True)
class BreakingCLIP(CLIP):
    """A CLIP whose loss is not a number any more after some steps; its carried state counts them."""

    after: int = 6
    """Steps that are good."""

    def init(self, rng, batch):
        """As CLIP's, with the count."""
        params, carried = super().init(rng, batch)
        return params, {**carried, "good": jnp.zeros((), jnp.int32)}

    def loss(self, params, carried, batch, rng):
        """As CLIP's, until it breaks."""
        carried = dict(carried)
        good = carried.pop("good")
        loss, (metrics, carried) = super().loss(params, carried, batch, rng)
        return jnp.where(good >= self.after, jnp.nan, 1.0) * loss, (metrics, {**carried, "good": good + 1})


def get_config(variant: str = "base") -> Experiment:
    """The experiment, and what goes wrong or slowly in its variants."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    base = experiment()
    if variant == "evaluated":
        return dataclasses.replace(base, evaluations=evaluations(), evaluate_every=16)
    if variant == "slow":
        return with_source(base, SlowShapes(size=SIZE))
    if variant == "stuck":
        return with_source(base, SlowShapes(size=SIZE, count=4 * BATCH, seconds=0, stuck=25))  # in step 4
    if variant == "breaks":
        return dataclasses.replace(base, system=BreakingCLIP(**shallow(base.system)))
    if variant == "tars":
        return with_source(base, WebDataset((str(Path(os.environ[RECORDS]) / "*.tar"),), name="tars"))
    if variant == "table":
        return with_source(base, Table((str(Path(os.environ[RECORDS]) / "table.jsonl"),), name="table"))
    return base


def experiment() -> Experiment:
    """What every variant starts from."""
    image = ImageTransform(Squash(SIZE))
    return Experiment(
        name="tiny_clip",
        system=CLIP(
            image=ViT(image=SIZE, patch=8, width=32, depth=2, heads=4, mlp=64, pool="mean"),
            text=TextEncoder(width=32, depth=2, heads=4, mlp=64, vocab=VOCAB, context=LENGTH),
            embed=16,
            dtype="float32",
        ),
        data=Data(
            sources=(Weighted(Shapes(size=SIZE)),),
            preprocess=ImageText(image, TrainedBpe(Shapes(size=SIZE), vocab_size=VOCAB, examples=200), length=LENGTH),
            batch_size=BATCH,
        ),
        optimizer=Optimizer(AdamW(b1=0.9, b2=0.98, weight_decay=0.1), Cosine(peak=1e-3, warmup_steps=4), clip_norm=1.0),
        steps=STEPS,
        evaluation_image=image,
        checkpoints=Checkpoints(every_steps=4),
        reports=Reports(every_steps=1, tensorboard=False),
    )


def evaluations() -> tuple[ZeroShot, Retrieval]:
    """Both kinds, on few pictures; the last batch is not full."""
    return (
        ZeroShot(
            Shapes("test", count=40, size=SIZE, kinds=("single",)),
            label="class",
            class_names=class_names(),
            templates=("{}",),
        ),
        Retrieval(Shapes("test", count=40, size=SIZE, captions="full", distinct=True), captions=1),
    )


def with_source(base: Experiment, source) -> Experiment:
    """The experiment on another source."""
    return dataclasses.replace(base, data=dataclasses.replace(base.data, sources=(Weighted(source),)))


def shallow(config) -> dict:
    """The fields of a dataclass as they are."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
