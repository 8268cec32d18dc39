"""BLIP as Hugging Face stores it: the captioner, the model that answers questions, and the one for retrieval.

transformers has BLIP's pretraining nowhere, and begins a text that is read beside an image with [CLS] where BLIP has
[ENC]: the same tokens give the same logits. Its `BlipModel`, with a pooler and without matching, is none of BLIP's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlmax.data.tokenizers import Tokenizer, TokenizerConfig, WithTokens
from vlmax.interop import bert, blip_image
from vlmax.interop.family import IMAGE_FILES, Family, Json, activation, cannot, field, name_of, only
from vlmax.interop.table import Absent, LeftOut, Row, linear, norm, under
from vlmax.models.decoders.bert import BERT
from vlmax.models.encoders.vit import ViT
from vlmax.systems.blip_alignment import Alignment
from vlmax.systems.blip_caption import BLIPCaption
from vlmax.systems.blip_model import DECODE, ENCODE, MED
from vlmax.systems.blip_retrieval import BLIPRetrieval
from vlmax.systems.blip_vqa import BLIPVQA

Whole = BLIPCaption | BLIPVQA | BLIPRetrieval

IMAGE = (*blip_image.ROWS, *norm("image/final_norm", "vision_model.post_layernorm"))
DECODER = under("decoder/", "text_decoder.", bert.ROWS)
ENCODER = under(
    "text/",
    "text_encoder.",
    tuple(
        dataclasses.replace(row, foreign=row.foreign.removeprefix("bert."))
        for row in bert.ROWS
        if row.foreign.startswith("bert.")
    ),
)
# D width, E joint space, P the two logits.
HEADS = (
    *linear("image_projection", "vision_proj", "D E = E D", "E = E"),
    *linear("text_projection", "text_proj", "D E = E D", "E = E"),
    *linear("matching", "itm_head", "D P = P D", "P = P"),
)
ROWS: dict[type, tuple[Row, ...]] = {
    BLIPCaption: (*IMAGE, *DECODER),
    BLIPVQA: (*IMAGE, *ENCODER, *DECODER),
    BLIPRetrieval: (*IMAGE, *ENCODER, *HEADS),
}

TEMPERATURE = Absent("objective/temperature", "the temperature of the contrastive loss")


def read_model(found: Json) -> MED:
    """The parts that all of them have."""
    text, image = field(found, "text_config", {}), blip_image.read(field(found, "vision_config", {}))
    only(text, "is_decoder", (True,), True)
    only(text, "tie_word_embeddings", (True,), True)
    decode = field(text, "bos_token_id", 30_522)
    sizes = BERT(
        width=field(text, "hidden_size", 768),
        depth=field(text, "num_hidden_layers", 12),
        heads=field(text, "num_attention_heads", 8),
        mlp=field(text, "intermediate_size", 3072),
        vocab=field(text, "vocab_size", 30_524),
        context=field(text, "max_position_embeddings", 512),
        token_types=0,
        activation=activation(text, "hidden_act", "gelu"),
        norm_epsilon=field(text, "layer_norm_eps", 1e-12),
    )
    # The files do not name [ENC]; it was added after [DEC].
    return MED(image, sizes, field(text, "pad_token_id", 0), decode, encode=decode + 1)


def read_caption(found: Json) -> BLIPCaption:
    """The captioner."""
    model = read_model(found)
    return BLIPCaption(model, length=min(BLIPCaption.length, model.text.context))


def read_vqa(found: Json) -> BLIPVQA:
    """The model that answers questions."""
    model = read_model(found)
    longest = model.text.context
    return BLIPVQA(model, min(BLIPVQA.length, longest), answer_length=min(BLIPVQA.answer_length, longest))


def read_retrieval(found: Json) -> BLIPRetrieval:
    """The model for retrieval."""
    model = read_model(found)
    alignment = dataclasses.replace(BLIPRetrieval.alignment, embed=field(found, "image_text_hidden_size", 256))
    return BLIPRetrieval(model, alignment, min(BLIPRetrieval.length, model.text.context))


def write(config: Whole) -> dict[str, Any]:
    """config.json."""
    model = config.model
    text = model.text
    vision = blip_image.write(model.image, "blip")
    cannot(text.token_types == 0 and text.predicts, "a BERT with token types", "blip")
    alike = not isinstance(config, BLIPVQA) or text.width == model.image.width  # it has one size for both contexts
    cannot(alike, f"an image encoder {model.image.width} wide beside a text model {text.width} wide", "blip")
    cannot(model.encode == model.decode + 1, "an [ENC] that does not follow [DEC]", "blip")
    joint = config.alignment.embed if isinstance(config, BLIPRetrieval) else Alignment.embed
    return {
        "architectures": [ARCHITECTURES[type(config)]],
        "model_type": "blip",
        "image_text_hidden_size": joint,
        "projection_dim": 512,
        "tie_word_embeddings": True,
        "vision_config": {"model_type": "blip_vision_model", **vision},
        "text_config": {
            "model_type": "blip_text_model",
            "hidden_size": text.width,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.heads,
            "intermediate_size": text.mlp,
            "encoder_hidden_size": model.image.width,
            "vocab_size": text.vocab,
            "max_position_embeddings": text.context,
            "hidden_act": name_of(text.activation),
            "layer_norm_eps": text.norm_epsilon,
            "is_decoder": True,
            "bos_token_id": model.decode,
            "pad_token_id": model.pad,
            "sep_token_id": None,  # is the tokenizer's
        },
    }


ARCHITECTURES: dict[type, str] = {
    BLIPCaption: "BlipForConditionalGeneration",
    BLIPVQA: "BlipForQuestionAnswering",
    BLIPRetrieval: "BlipForImageTextRetrieval",
}


def marks(found: Json, tokenizer: Tokenizer) -> dict[str, Any]:
    """[SEP] ends a text."""
    return {"text_config": {**found["text_config"], "sep_token_id": tokenizer.eos}}


def ends(found: Json) -> Json:
    """What ends a text; transformers calls it by another name here."""
    return {"eos_token_id": field(found, "text_config", {}).get("sep_token_id")}


def with_marks(found: TokenizerConfig) -> TokenizerConfig:
    """With [DEC] and [ENC], which transformers' tokenizers of BLIP lack."""
    return WithTokens(found, (DECODE, ENCODE))


def with_pixels(config: Any, normal: Mapping[str, tuple[float, ...]]) -> Any:
    """The system with the mean and standard deviation of preprocessor_config.json."""
    changes: dict[str, Any] = dict(normal)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


def write_beside(folder: Path, config: Whole, content: Json) -> None:
    """What happens to an image."""
    model = config.model
    assert isinstance(model.image, ViT)
    blip_image.write_beside(folder, model.image, model.mean, model.std)


def sizes(config: Any) -> dict[str, int]:
    """The letters of a patch and of the vocabulary."""
    return {"V": config.model.text.vocab, **blip_image.patch_sizes(config.model.image)}


def same(config: Any) -> dict[str, str]:
    """The decoder's output matrix is that of its embeddings."""
    return {f"text_decoder.{name}": f"text_decoder.{other}" for name, other in bert.FAMILY.tied(config).items()}


def _family(name: str, kind: type, read: Callable[[Json], Any], *absent: Absent) -> Family:
    return Family(
        name=name,
        model_types=("blip",),
        architectures=(ARCHITECTURES[kind],),
        config=kind,
        read=read,
        write=write,
        rows=ROWS[kind],
        sizes=sizes,
        left_out=(LeftOut(r"text_(en|de)coder\.(bert\.)?embeddings\.position_ids"),),
        absent=absent,
        same=same,
        files=(*Family.files, *IMAGE_FILES),
        pixels=with_pixels,
        beside=write_beside,
        ends=ends,
        marks=marks,
        tokenizer=with_marks,
    )


FAMILIES = (
    _family("blip_caption", BLIPCaption, read_caption),
    _family("blip_vqa", BLIPVQA, read_vqa),
    _family("blip_retrieval", BLIPRetrieval, read_retrieval, TEMPERATURE),
)
