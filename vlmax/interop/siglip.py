"""SigLIP as Hugging Face stores it: the whole model, its image encoder alone, its text encoder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmax.interop.clip import (
    BARE_TEXT,
    BARE_VISION,
    LAYER,
    POSITION_IDS,
    TEXT,
    image_argument,
    patch_sizes,
    side,
    sizes,
    square,
    text_argument,
    with_pixels,
    write_sizes,
)
from vlmax.interop.family import IMAGE_FILES, Family, Json, cannot, field, write_pixels
from vlmax.interop.table import Row, linear, norm, thirds, under
from vlmax.models.encoders.text import TextEncoder
from vlmax.models.encoders.vit import ViT
from vlmax.systems.clip import CLIP, Sigmoid

# The letters are CLIP's; R of the pooling head's learned query.
POOL = (
    Row("probe", "probe", "R D = 1 R D"),
    *thirds("kernel", "attention.in_proj_weight", "D H K = (3 H K) D"),
    *thirds("bias", "attention.in_proj_bias", "H K = (3 H K)"),
    *linear("attention/out", "attention.out_proj", "H K D = D (H K)", "D = D"),
    *norm("norm", "layernorm"),
    *linear("mlp/up", "mlp.fc1", "D F = F D", "F = F"),
    *linear("mlp/down", "mlp.fc2", "F D = D F", "D = D"),
)
VISION = under(
    "",
    "vision_model.",
    (
        *linear("patch_embedding", "embeddings.patch_embedding", "(y x c) D = D c y x", "D = D"),
        Row("positions/embedding", "embeddings.position_embedding.weight", "T D = T D"),
        *under("transformer/layers/", "encoder.layers.{layer}.", LAYER),
        *norm("final_norm", "post_layernorm"),
        *under("pool/", "head.", POOL),
    ),
)
TEXT_AND_HEAD = (*TEXT, *linear("head", "text_model.head", "D E = E D", "E = E"))
WHOLE = (
    *under("image/", "", VISION),
    *under("text/", "", TEXT_AND_HEAD),
    Row("objective/log_scale", "logit_scale", "= 1"),
    Row("objective/bias", "logit_bias", "= 1"),
)

HALF = (0.5, 0.5, 0.5)
TANH = "gelu_pytorch_tanh"


def read_vision(found: Json) -> ViT:
    """The image encoder, of `vision_config`."""
    return ViT(
        **sizes(found, (768, 12, 12, 3072), TANH, 1e-6),
        patch=field(found, "patch_size", 16),
        image=side(field(found, "image_size", 224)),
        pool="map" if found.get("vision_use_head", True) else "mean",
        pre_norm=False,
        patch_bias=True,
        init="xavier",
    )


def read_text(found: Json) -> TextEncoder:
    """The text encoder, of `text_config`."""
    text = sizes(found, (768, 12, 12, 3072), TANH, 1e-6)
    return TextEncoder(
        **text,
        vocab=field(found, "vocab_size", 32_000),
        context=field(found, "max_position_embeddings", 64),
        causal=False,
        pool="last",
        head_width=field(found, "projection_size", text["width"]),
        init="xavier",
    )


def read_whole(found: Json) -> CLIP:
    """The whole model, whose joint space is what the encoders end in."""
    image, text = read_vision(field(found, "vision_config", {})), read_text(field(found, "text_config", {}))
    return CLIP(
        image=image,
        text=text,
        embed=image.output_width,
        objective=Sigmoid(),
        image_projection=False,
        text_projection=False,
        mean=HALF,
        std=HALF,
    )


def write_vision(config: ViT) -> dict[str, Any]:
    """config.json of the image encoder."""
    cannot(config.pool != "class" and config.positions == "learned", "an image encoder with a class token", "siglip")
    cannot(not config.pre_norm and config.final_norm, "these norms of the image encoder", "siglip")
    cannot(config.patch_bias and config.qkv_bias, "these biases of the image encoder", "siglip")
    return {
        "architectures": ["SiglipVisionModel"],
        "model_type": "siglip_vision_model",
        **write_sizes(config, TANH),
        "patch_size": config.patch,
        "image_size": square(config, "siglip"),
        "vision_use_head": config.pool == "map",
    }


def write_text(config: TextEncoder) -> dict[str, Any]:
    """config.json of the text encoder."""
    cannot(not config.causal and config.pool == "last", "a causal text encoder", "siglip")
    cannot(config.head_width is not None, "a text encoder without head", "siglip")
    return {
        "architectures": ["SiglipTextModel"],
        "model_type": "siglip_text_model",
        **write_sizes(config, TANH),
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "projection_size": config.head_width,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }


def write_whole(config: CLIP) -> dict[str, Any]:
    """config.json of the whole model."""
    cannot(isinstance(config.image, ViT) and config.image.pool == "map", "an image encoder of another kind", "siglip")
    cannot(isinstance(config.objective, Sigmoid), "a softmax loss, without bias", "siglip")
    cannot(not config.image_projection and not config.text_projection, "projections after the encoders", "siglip")
    assert isinstance(config.image, ViT)
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": write_vision(config.image),
        "text_config": write_text(config.text),
    }


def write_beside(folder: Path, config: CLIP, content: Json) -> None:
    """What happens to an image: it is resized, whatever its shape."""
    height, width = config.image.image_size
    found = {"image_processor_type": "SiglipImageProcessor", "size": {"height": height, "width": width}}
    write_pixels(folder, found, config.mean, config.std)


FAMILIES = (
    Family(
        name="siglip",
        model_types=("siglip",),
        config=CLIP,
        read=read_whole,
        write=write_whole,
        rows=WHOLE,
        sizes=patch_sizes,
        left_out=(POSITION_IDS,),
        files=(*Family.files, *IMAGE_FILES),
        pixels=with_pixels,
        beside=write_beside,
    ),
    Family(
        name="siglip_vision",
        model_types=("siglip_vision_model",),
        config=ViT,
        read=read_vision,
        write=write_vision,
        rows=VISION,
        sizes=patch_sizes,
        arguments=image_argument,
        renamed=BARE_VISION,
        left_out=(POSITION_IDS,),
        files=("config.json", *IMAGE_FILES),
    ),
    Family(
        name="siglip_text",
        model_types=("siglip_text_model",),
        config=TextEncoder,
        read=read_text,
        write=write_text,
        rows=TEXT_AND_HEAD,
        arguments=text_argument,
        renamed=BARE_TEXT,
        left_out=(POSITION_IDS,),
    ),
)
