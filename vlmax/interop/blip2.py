"""BLIP-2's second stage as Hugging Face stores it: an image encoder, a Q-Former, and OPT, T5 or LLaMA."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmax.data.tokenizers import Tokenizer
from vlmax.errors import InputError
from vlmax.interop import blip_image, llama, opt, qformer, t5
from vlmax.interop.family import IMAGE_FILES, PROCESSOR, Family, Json, cannot, field, write_json
from vlmax.interop.table import LeftOut, Row, linear, under
from vlmax.models.connectors.qformer import QFormer
from vlmax.models.decoders.t5 import T5
from vlmax.models.encoders.vit import ViT
from vlmax.systems.image_places import Before
from vlmax.systems.image_prefix import ImagePrefix
from vlmax.systems.language_model import Causal, TextToText

LANGUAGE: tuple[Family, ...] = (opt.FAMILY, t5.FAMILY, llama.FAMILY)
"""The language models that it can have."""
LANGUAGE_NAME = "language_model."
LENGTH = 128
"""Tokens of a text beside the image, unless the language model has room for less."""
NAMES = qformer.Names(
    layers="qformer.encoder.layer",
    attention="attention",
    words="embeddings",
    embedding_norm="qformer.layernorm",
    context_norm="vision_model.post_layernorm",
)


def language(config: ImagePrefix) -> Family:
    """The family of the system's language model."""
    return next(family for family in LANGUAGE if type(config.text.decoder) is family.config)


def rows_with(config: ImagePrefix, names: qformer.Names) -> tuple[Row, ...]:
    """The table; `names` are those of the Q-Former."""
    decoder = config.text.decoder
    connector = () if config.connector is None else qformer.rows(config.connector, "connector/", names)
    return (
        *blip_image.ROWS,
        *connector,
        *linear("projection/layer_0", "language_projection", "Q D = D Q", "D = D"),
        *under("text/", LANGUAGE_NAME, language(config).table(decoder)),
    )


def rows(config: ImagePrefix) -> tuple[Row, ...]:
    """The table."""
    return rows_with(config, NAMES)


def sizes(config: ImagePrefix) -> dict[str, int]:
    """The letters of a patch and of both vocabularies."""
    former = {} if config.connector is None else {"U": config.connector.vocab}
    return {"V": config.text.decoder.vocab, **former, **blip_image.patch_sizes(config.image)}


def same(config: ImagePrefix) -> dict[str, str]:
    """Those of the language model."""
    tied = language(config).tied(config.text.decoder)
    return {f"{LANGUAGE_NAME}{name}": f"{LANGUAGE_NAME}{other}" for name, other in tied.items()}


def read_system(found: Json, instruction: int | None = None) -> ImagePrefix:
    """The system, whose Q-Former reads instructions of at most so many tokens, or none."""
    vision, text = field(found, "vision_config", {}), field(found, "text_config")
    image, reads = blip_image.read_frozen(vision), instruction is not None
    connector = qformer.read(found, image.width, image.norm_epsilon, text=reads, predicts=False)
    longest = None if instruction is None else min(instruction, connector.context)
    pad = field(field(found, "qformer_config", {}), "pad_token_id", 0)
    language_model = language_read(text, connector.queries)
    return ImagePrefix(image, language_model, connector, instruction=longest, instruction_pad=pad)


def read(found: Json) -> ImagePrefix:
    """The system, of config.json."""
    return read_system(found)


def language_read(found: Json, queries: int) -> Causal | TextToText:
    """The language model, of `text_config`; it reads so many tokens of an image before a text."""
    kinds = {kind: family for family in LANGUAGE for kind in family.model_types}
    kind = found.get("model_type")
    if kind not in kinds:
        raise InputError(f"text_config: the language model is {kind!r}; vlmax reads {', '.join(kinds)} here")
    decoder = kinds[kind].read(found)
    length = min(LENGTH, decoder.context - queries)
    return TextToText(decoder, length, length) if isinstance(decoder, T5) else Causal(decoder, length)


def write_parts(config: ImagePrefix, family: str, kind: str) -> dict[str, Any]:
    """What config.json says of the parts; `kind` begins the names of their types."""
    connector = config.connector
    cannot(isinstance(connector, QFormer), "a system without Q-Former", family)
    cannot(isinstance(config.layout, Before) and not config.patches_only, "images among the text", family)
    cannot(config.projection.layers == 1, f"a projection of {config.projection.layers} layers", family)
    kinds = tuple(one.config for one in LANGUAGE)
    decoder = config.text.decoder
    cannot(isinstance(decoder, kinds), f"a {type(decoder).__name__} as the language model", family)
    cannot(getattr(decoder, "token_width", None) is None, "embeddings narrower than the language model", family)
    assert isinstance(connector, QFormer)
    return {
        "num_query_tokens": connector.queries,
        "vision_config": {"model_type": f"{kind}_vision_model", **blip_image.write(config.image, family, False)},
        "qformer_config": qformer.write(connector, f"{kind}_qformer", family),
        "text_config": language(config).write(decoder),
    }


def write(config: ImagePrefix) -> dict[str, Any]:
    """config.json."""
    cannot(config.instruction is None, "a Q-Former that reads instructions", "blip-2")
    parts = write_parts(config, "blip-2", "blip_2")
    parts["qformer_config"] |= {"use_qformer_text_input": False}
    return {"architectures": ["Blip2ForConditionalGeneration"], "model_type": "blip-2", **parts}


IMAGE_TOKEN = "<image>"


def marks(found: Json, tokenizer: Tokenizer) -> dict[str, Any]:
    """The ids of the language model's marks, and of the token that stands where the image does.

    transformers' processor adds that token to the tokenizer, so that it needs a row of the vocabulary.

    Raises:
      InputError: there is none.
    """
    text = found["text_config"]
    end = tokenizer.ends[0] if len(tokenizer.ends) == 1 else list(tokenizer.ends) or None
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": end, "pad_token_id": tokenizer.pad_id}
    told: dict[str, Any] = {name: token for name, token in ids.items() if token is not None}
    if "decoder_start_token_id" in text:
        told["decoder_start_token_id"] = tokenizer.pad_id
    known = tokenizer.encode(IMAGE_TOKEN)
    image = known[0] if len(known) == 1 and tokenizer.decode(known) in ("", IMAGE_TOKEN) else tokenizer.vocab_size
    if image >= text["vocab_size"]:
        raise InputError(
            f"writing a {found['model_type']} checkpoint: transformers marks an image with a token of its own, "
            f"{IMAGE_TOKEN}, which would be {image}, and the language model's vocabulary has {text['vocab_size']} "
            "rows; give it one more before it is trained (`vocab`, and `grow` of Pretrained)"
        )
    return {"image_token_index": image, "text_config": {**text, **told}}


def ends(found: Json) -> Json:
    """What ends a text is said by the language model's part."""
    return field(found, "text_config", {})


def with_pixels(config: Any, normal: Mapping[str, tuple[float, ...]]) -> Any:
    """The system with the mean and standard deviation of preprocessor_config.json."""
    changes: dict[str, Any] = dict(normal)
    return dataclasses.replace(config, **changes)


def write_beside(folder: Path, config: ImagePrefix, content: Json) -> None:
    """What happens to an image, and how many tokens of the text it is."""
    image, connector = config.image, config.connector
    assert isinstance(image, ViT) and connector is not None
    blip_image.write_beside(folder, image, config.mean, config.std)
    if not (folder / PROCESSOR).is_file():
        kind = {"blip-2": "Blip2Processor", "instructblip": "InstructBlipProcessor"}[content["model_type"]]
        write_json(folder / PROCESSOR, {"processor_class": kind, "num_query_tokens": connector.queries})


def remarks(config: ImagePrefix) -> list[str]:
    """See `qformer.epsilons`."""
    assert config.connector is not None and isinstance(config.image, ViT)
    return qformer.epsilons(config.connector, config.image.norm_epsilon)


LEFT_OUT = (
    LeftOut(r"(qformer\.)?embeddings\.position_ids"),
    *(dataclasses.replace(rule, pattern=re.escape(LANGUAGE_NAME) + rule.pattern)
      for family in LANGUAGE for rule in family.left_out),
)  # fmt: skip

FAMILY = Family(
    name="blip-2",
    model_types=("blip-2",),
    architectures=("Blip2ForConditionalGeneration", "Blip2Model"),
    config=ImagePrefix,
    read=read,
    write=write,
    rows=rows,
    sizes=sizes,
    left_out=LEFT_OUT,
    same=same,
    files=(*Family.files, *IMAGE_FILES),
    pixels=with_pixels,
    beside=write_beside,
    ends=ends,
    marks=marks,
    remarks=remarks,
)
