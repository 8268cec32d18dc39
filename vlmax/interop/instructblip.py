"""InstructBLIP as Hugging Face stores it: BLIP-2's second stage whose Q-Former also reads the instruction."""

from __future__ import annotations

import dataclasses
from typing import Any

from vlmax.interop import blip2
from vlmax.interop.family import TOKENIZER_FILES, Json, cannot
from vlmax.interop.table import Row
from vlmax.systems.image_prefix import ImagePrefix

NAMES = dataclasses.replace(blip2.NAMES, words="qformer.embeddings", embedding_norm="qformer.embeddings.layernorm")
INSTRUCTION = 128
"""Tokens of an instruction, unless the Q-Former has room for less."""
INSTRUCTION_FILES = "qformer_tokenizer"
"""The folder with the Q-Former's tokenizer."""


def rows(config: ImagePrefix) -> tuple[Row, ...]:
    """The table."""
    return blip2.rows_with(config, NAMES)


def read(found: Json) -> ImagePrefix:
    """The system, of config.json."""
    return blip2.read_system(found, INSTRUCTION)


def write(config: ImagePrefix) -> dict[str, Any]:
    """config.json."""
    cannot(config.instruction is not None, "a Q-Former that reads no instruction", "instructblip")
    parts = blip2.write_parts(config, "instructblip", "instructblip")
    parts["qformer_config"] |= {"pad_token_id": config.instruction_pad}
    return {"architectures": ["InstructBlipForConditionalGeneration"], "model_type": "instructblip", **parts}


FAMILY = dataclasses.replace(
    blip2.FAMILY,
    name="instructblip",
    model_types=("instructblip",),
    architectures=("InstructBlipForConditionalGeneration",),
    read=read,
    write=write,
    rows=rows,
    files=(*blip2.FAMILY.files, *(f"{INSTRUCTION_FILES}/{name}" for name in TOKENIZER_FILES)),
)
