"""BLIP-2's first stage as Hugging Face stores it: without the head that writes captions, and without temperature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmax.interop import blip2, blip_image, qformer
from vlmax.interop.family import IMAGE_FILES, PROCESSOR, Family, Json, cannot, field, only, write_json
from vlmax.interop.table import Absent, LeftOut, Row, linear
from vlmax.models.encoders.vit import ViT
from vlmax.systems.blip2 import BLIP2

# D width, E joint space, P the two logits.
HEADS = (
    *linear("image_projection", "vision_projection", "D E = E D", "E = E"),
    *linear("text_projection", "text_projection", "D E = E D", "E = E"),
    *linear("matching", "itm_head", "D P = P D", "P = P"),
)


def rows(config: BLIP2) -> tuple[Row, ...]:
    """The table."""
    return (*blip_image.ROWS, *qformer.rows(config.qformer, "qformer/", blip2.NAMES), *HEADS)


def read(found: Json) -> BLIP2:
    """The system, of config.json."""
    only(field(found, "qformer_config", {}), "use_qformer_text_input", (True,), False)
    image = blip_image.read_frozen(field(found, "vision_config", {}))
    former = qformer.read(found, image.width, image.norm_epsilon)
    # The files do not name [DEC]; BERT's vocabulary has 30,522 tokens, after which it was added.
    decode = BLIP2.decode if former.vocab > BLIP2.decode else former.vocab - 1
    embed, length = field(found, "image_text_hidden_size", 256), min(BLIP2.length, former.context)
    pad = field(field(found, "qformer_config", {}), "pad_token_id", 0)
    return BLIP2(image, former, embed=embed, length=length, pad=pad, decode=decode)


def write(config: BLIP2) -> dict[str, Any]:
    """config.json. It has a language model's part, too, which nothing of this model uses."""
    former = qformer.write(config.qformer, "blip_2_qformer", "blip-2")
    expected = BLIP2.decode if config.qformer.vocab > BLIP2.decode else config.qformer.vocab - 1
    cannot(config.decode == expected, f"a [DEC] that is {config.decode}, not {expected}", "blip-2")
    return {
        "architectures": ["Blip2ForImageTextRetrieval"],
        "model_type": "blip-2",
        "image_text_hidden_size": config.embed,
        "num_query_tokens": config.qformer.queries,
        "vision_config": {
            "model_type": "blip_2_vision_model",
            **blip_image.write(config.image, "blip-2", final_norm=False),
        },
        "qformer_config": {**former, "use_qformer_text_input": True, "pad_token_id": config.pad},
    }


def sizes(config: BLIP2) -> dict[str, int]:
    """The letters of a patch and of the vocabulary."""
    return {"U": config.qformer.vocab, **blip_image.patch_sizes(config.image)}


def ends(found: Json) -> Json:
    """What ends a text is not said: the model reads texts and writes none."""
    return {}


def write_beside(folder: Path, config: BLIP2, content: Json) -> None:
    """What happens to an image; a text has no place for it."""
    assert isinstance(config.image, ViT)
    blip_image.write_beside(folder, config.image, config.mean, config.std)
    if not (folder / PROCESSOR).is_file():
        write_json(folder / PROCESSOR, {"processor_class": "Blip2Processor"})


def remarks(config: BLIP2) -> list[str]:
    """See `qformer.epsilons`."""
    assert isinstance(config.image, ViT)
    return qformer.epsilons(config.qformer, config.image.norm_epsilon)


FAMILY = Family(
    name="blip-2_matching",
    model_types=("blip-2",),
    architectures=("Blip2ForImageTextRetrieval",),
    config=BLIP2,
    read=read,
    write=write,
    rows=rows,
    sizes=sizes,
    left_out=(LeftOut(r"embeddings\.position_ids"),),
    absent=(qformer.HEAD, Absent("objective/temperature", "the temperature of the contrastive loss")),
    files=(*Family.files, *IMAGE_FILES),
    pixels=blip2.with_pixels,
    beside=write_beside,
    ends=ends,
    remarks=remarks,
)
