"""BLIP in the files of its authors (`.pth`, github.com/salesforce/BLIP; LAVIS has the same): read, not written.

They hold no configuration: which system it is, is said by the parts that there are, and its sizes by the tensors.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vlmax.errors import InputError
from vlmax.interop import bert, blip, blip_image_pth, open_clip
from vlmax.interop.family import Family
from vlmax.interop.table import LeftOut, Row, linear, norm, under
from vlmax.interop.tensors import Tensors
from vlmax.models.decoders.bert import blip_text
from vlmax.systems.blip import BLIP
from vlmax.systems.blip_caption import BLIPCaption
from vlmax.systems.blip_model import MED
from vlmax.systems.blip_nlvr2 import BLIPNLVR2
from vlmax.systems.blip_retrieval import BLIPRetrieval
from vlmax.systems.blip_vqa import BLIPVQA

MARKS = ("visual_encoder.cls_token", "visual_encoder.norm.weight")
"""Tensors that a file has beside those of a text encoder or decoder."""
HEADS = (*blip.HEADS, Row("objective/temperature", "temp", "="))


def is_blip(tensors: Tensors) -> bool:
    """Whether a file is one of BLIP's."""
    text = any(name.startswith(("text_encoder.", "text_decoder.")) for name in tensors)
    return text and all(name in tensors for name in MARKS)


def described(tensors: Tensors) -> Any:
    """The system whose tensors these are, under their own names.

    Raises:
      InputError: they are not BLIP's.
    """
    try:
        return _described(tensors)
    except (KeyError, IndexError) as error:
        raise InputError(f"there is no tensor {error}, which BLIP has; it is another model") from None


def _described(tensors: Tensors) -> Any:
    reads, writes, matches = (
        any(name.startswith(part) for name in tensors) for part in ("text_encoder.", "text_decoder.", "itm_head.")
    )
    model = _model(tensors, "text_encoder." if reads else "text_decoder.bert.")
    if any(name.startswith("cls_head.") for name in tensors):
        return BLIPNLVR2(model)
    if not matches:
        return BLIPVQA(model) if reads else BLIPCaption(model)
    embed = tensors["vision_proj.weight"].shape[0]
    if not writes:
        return BLIPRetrieval(model, dataclasses.replace(BLIPRetrieval.alignment, embed=embed))
    return BLIP(model, dataclasses.replace(BLIP.alignment, embed=embed))


def _model(tensors: Tensors, text: str) -> MED:
    """The parts that all have; [DEC] and [ENC] are the vocabulary's last two tokens."""
    vocab, width = tensors[f"{text}embeddings.word_embeddings.weight"].shape
    config = blip_text(
        width=width,
        depth=open_clip.count(tensors, f"{text}encoder.layer."),
        heads=width // 64,
        mlp=tensors[f"{text}encoder.layer.0.intermediate.dense.weight"].shape[0],
        vocab=vocab,
        context=tensors[f"{text}embeddings.position_embeddings.weight"].shape[0],
    )
    return MED(blip_image_pth.blip(tensors), config, decode=vocab - 2, encode=vocab - 1)


def two_image_rows(depth: int) -> tuple[Row, ...]:
    """The encoder that compares two images: two cross-attentions a layer, of which the second half merges both."""

    def crossing(i: int) -> tuple[Row, ...]:
        rows = (
            *linear("query", f"self{i}.query", "D H K = (H K) D", "H K = (H K)"),
            *linear("key", f"self{i}.key", "C H K = (H K) C", "H K = (H K)"),
            *linear("value", f"self{i}.value", "C H K = (H K) C", "H K = (H K)"),
            *linear("out", f"output.dense{i}", "H K D = D (H K)", "D = D"),
        )
        return under(f"cross_attention_{i}/", "crossattention.", rows)

    plain = tuple(row for row in bert.LAYER if not row.own.startswith("cross_"))
    layer = (*plain, *crossing(0), *crossing(1), *norm("cross_attention_norm", "crossattention.output.LayerNorm"))
    merging = "text_encoder.encoder.layer.{layer}.crossattention.output.merge_layer"
    return (
        *(row for row in blip.ENCODER if "/layers/" not in row.own),
        *under("text/layers/", "text_encoder.encoder.layer.{layer}.", layer),
        Row("text/merge_kernel", f"{merging}.weight", "M D = D M", first=depth // 2),
        Row("text/merge_bias", f"{merging}.bias", "D = D", first=depth // 2),
        *linear("classifier/hidden", "cls_head.0", "D E = E D", "E = E"),
        *linear("classifier/out", "cls_head.2", "D P = P D", "P = P"),
    )


def rows(config: Any) -> tuple[Row, ...]:
    """The table."""
    if isinstance(config, BLIPNLVR2):
        return (*blip_image_pth.BLIP, *two_image_rows(config.model.text.depth))
    return (*blip_image_pth.BLIP, *blip.ENCODER, *blip.DECODER, *HEADS)


def same(config: Any) -> dict[str, str]:
    """The output matrix, and in pretraining what decoder and encoder share, which is stored twice."""
    found = blip.same(config)
    if isinstance(config, BLIP):
        for row in blip.ENCODER:
            for layer in range(config.model.text.depth):
                name = row.foreign.format(layer=layer)
                found[name.replace("text_encoder.", "text_decoder.bert.")] = name
        word = "embeddings.word_embeddings.weight"
        found["text_decoder.cls.predictions.decoder.weight"] = f"text_encoder.{word}"
    return found


def write(config: Any) -> dict[str, Any]:
    """None; raises InputError."""
    raise InputError("writing a blip_pth checkpoint: vlmax reads that layout and does not write it; take huggingface")


MOMENTUM = "the momentum twins and queues of pretraining, which begin anew"
FAMILY = Family(
    name="blip_pth",
    model_types=(),
    config=BLIP,
    read=lambda found: found,
    write=write,
    rows=rows,
    sizes=blip.sizes,
    renamed=((r"^module\.", ""),),
    left_out=(
        LeftOut(r"text_(en|de)coder(_m)?\.(bert\.)?embeddings\.position_ids"),
        LeftOut(r"(visual_encoder|text_encoder|text_decoder|vision_proj|text_proj)_m\..*", MOMENTUM),
        LeftOut(r"(image|text|idx|ptr)_queue|(new_)?(queue_ptr|ptr_queue)|queue_ptr", MOMENTUM),
    ),
    same=same,
    tokenizer=blip.with_marks,
)
