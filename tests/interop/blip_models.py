"""The smallest models of BLIP's families, as Hugging Face's folders hold them and as their authors' files do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from tests.interop import torch_file
from tests.interop.models import LANGUAGE
from vlmax.interop import writing
from vlmax.interop.family import Family
from vlmax.interop.model import outline
from vlmax.interop.table import absent, places
from vlmax.models.connectors.qformer import QFormer
from vlmax.models.decoders.bert import BERT
from vlmax.models.decoders.llama import LLaMA
from vlmax.models.decoders.opt import OPT
from vlmax.models.decoders.t5 import T5
from vlmax.models.encoders.vit import ViT
from vlmax.systems.blip2 import BLIP2
from vlmax.systems.blip_alignment import Alignment
from vlmax.systems.blip_caption import BLIPCaption
from vlmax.systems.blip_model import MED
from vlmax.systems.blip_retrieval import BLIPRetrieval
from vlmax.systems.blip_vqa import BLIPVQA
from vlmax.systems.image_prefix import ImagePrefix
from vlmax.systems.language_model import Causal, TextToText

IMAGE = ViT(
    width=20,
    depth=2,
    heads=4,
    mlp=24,
    patch=4,
    image=12,
    pre_norm=False,
    patch_bias=True,
    norm_epsilon=1e-6,
    init="normal",
)
TEXT = BERT(width=16, depth=2, heads=4, mlp=28, vocab=26, context=50, token_types=0)
MODEL = MED(IMAGE, TEXT, decode=24, encode=25)
FROZEN = dataclasses.replace(IMAGE, final_norm=False)
FORMER = QFormer(width=16, depth=4, heads=4, mlp=28, queries=3, cross_width=20, cross_norm=1e-6, vocab=31, context=20)
ALIGNMENT: dict[str, Any] = {"embed": 12}
LEAN = dataclasses.replace(FORMER, text=False, predicts=False, vocab=30_522, context=512)
ROOM = LANGUAGE["context"] - FORMER.queries


def prefixed(decoder: Any, **changes: Any) -> ImagePrefix:
    """A second stage before that language model."""
    text = TextToText(decoder, ROOM, ROOM) if isinstance(decoder, T5) else Causal(decoder, ROOM)
    return ImagePrefix(FROZEN, text, **{"connector": LEAN, **changes})


INSTRUCTED: dict[str, Any] = {"connector": dataclasses.replace(FORMER, predicts=False), "instruction": 20}
SYSTEMS: dict[str, Any] = {
    "blip, caption": BLIPCaption(MODEL),
    "blip, questions": BLIPVQA(dataclasses.replace(MODEL, image=dataclasses.replace(IMAGE, width=16))),
    "blip, retrieval": BLIPRetrieval(MODEL, dataclasses.replace(BLIPRetrieval.alignment, **ALIGNMENT)),
    "blip-2, matching": BLIP2(FROZEN, FORMER, embed=12, length=20, decode=30),
    "blip-2, opt": prefixed(OPT(**LANGUAGE)),
    "blip-2, t5": prefixed(T5(**LANGUAGE, head_dim=4, activation="gelu")),
    "blip-2, t5 v1.0": prefixed(T5(**LANGUAGE, head_dim=4, tied=True, gated=False, activation="relu")),
    "instructblip, llama": prefixed(LLaMA(**LANGUAGE), **INSTRUCTED),
    "instructblip, t5": prefixed(T5(**LANGUAGE, head_dim=4, activation="gelu"), **INSTRUCTED),
}


def write_pth(path: Path, config: Any, family: Family, without: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """A file of an author's layout with random values, without some parts; what it holds, by our paths."""
    shape, table = outline(config, family), family.table(config)
    none = absent(family.absent, table, shape.shapes(), [row.foreign.replace("{layer}", "0") for row in table])
    sizes = {name: size for name, size in shape.shapes().items() if name not in none}
    kept = {name: size for name, size in sizes.items() if name.partition("/")[0] not in without}
    rng = np.random.default_rng(0)
    held = {name: rng.normal(size=size).astype(np.float32) for name, size in kept.items()}
    found = places(table, kept, family.sizes(config))
    torch_file.write(path, {name: values() for name, (_, _, values) in writing.sources(found, held).items()})
    return held


BERT_64 = BERT(width=64, depth=2, heads=1, mlp=32, vocab=40, context=60, token_types=0)
VIT_64 = dataclasses.replace(IMAGE, width=64, heads=1)
MODEL_64 = MED(VIT_64, BERT_64, decode=38, encode=39)
EVA_88 = dataclasses.replace(FROZEN, width=88, heads=1)
FORMER_64 = QFormer(width=64, depth=4, heads=1, mlp=32, queries=3, cross_width=1408, vocab=40, context=60)
ALIGNED = Alignment(**ALIGNMENT)
