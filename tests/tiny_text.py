"""The smallest language models, their batches and an experiment round them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tests.data.stand_ins import Letters, Texts
from vlmax.data.example import Features
from vlmax.data.pipeline import Data, Weighted
from vlmax.data.texts import PackedPairs, PackedText
from vlmax.experiment import Experiment
from vlmax.models.decoders.gpt2 import GPT2
from vlmax.models.decoders.llama import LLaMA
from vlmax.models.decoders.opt import OPT
from vlmax.models.decoders.t5 import T5
from vlmax.systems.language_model import Causal, LanguageModel, TextToText
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Constant

LENGTH = 16
SIZES = {"width": 16, "heads": 2, "mlp": 24, "vocab": 30, "vocab_multiple": 8, "context": LENGTH}
DECODERS = {
    "llama": LLaMA(**SIZES, depth=2, kv_heads=2),
    "mistral": LLaMA(**SIZES, depth=2, kv_heads=2, window=3),
    "qwen2": LLaMA(**SIZES, depth=2, kv_heads=2, tied=True, qkv_bias=True),
    "gpt2": GPT2(**SIZES, depth=2),
    "opt": OPT(**SIZES, depth=2),
    "opt_350m": OPT(**SIZES, depth=2, token_width=8, post_norm=True),
    "t5": T5(**SIZES, depth=1, head_dim=8, buckets=8, max_distance=9),
    "t5_first": T5(**SIZES, depth=1, head_dim=8, tied=True, gated=False, activation="relu"),
}


def system(name: str, **changes: Any) -> LanguageModel:
    """One of the language models in float32; the logits of three tokens at a time."""
    decoder = DECODERS[name]
    text = TextToText(decoder, LENGTH, LENGTH) if isinstance(decoder, T5) else Causal(decoder, LENGTH)
    return dataclasses.replace(LanguageModel(text, chunk=3, dtype="float32"), **changes)


def preprocess(name: str) -> PackedText | PackedPairs:
    """What makes its batches: three documents a row."""
    if isinstance(DECODERS[name], T5):
        return PackedPairs(Letters(), LENGTH, LENGTH, documents=3)
    return PackedText(Letters(), LENGTH, documents=3)


def row(name: str, *texts: str, seed: int = 0) -> Features:
    """A row of these texts."""
    make = preprocess(name)
    rng = np.random.default_rng(seed)
    packed = make.pack([make.document(Texts((text,))[0], rng) for text in texts])
    return {feature: packed[feature] for feature in make.features()}


def batch(name: str, rows: int, seed: int = 0) -> Features:
    """Random texts; rows hold one to three of 1 to 12 letters, very unequally."""
    rng = np.random.default_rng(seed)

    def text(most: int) -> str:
        return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(1, most + 1)))

    made = [row(name, *(text(1 + i % 8 + i % 3) for _ in range(1 + i % 3)), seed=i) for i in range(rows)]
    return {feature: np.stack([r[feature] for r in made]) for feature in made[0]}


def experiment(name: str, batch_size: int = 64, **changes: Any) -> Experiment:
    """An experiment on texts of stand-in letters."""
    texts = Texts(tuple(letter * (1 + i % 5) for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")))
    base = Experiment(
        name="tiny_text",
        system=system(name),
        data=Data(sources=(Weighted(texts),), preprocess=preprocess(name), batch_size=batch_size),
        optimizer=Optimizer(AdamW(weight_decay=0.1), Constant(peak=1e-2)),
        steps=10,
    )
    return dataclasses.replace(base, **changes)
