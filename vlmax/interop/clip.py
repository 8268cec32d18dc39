"""CLIP as Hugging Face stores it: the whole model, its image encoder alone, its text encoder alone.

OpenAI's and OpenCLIP's own layouts are in open_clip.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlmax.errors import InputError
from vlmax.interop.family import (
    IMAGE_FILES,
    Family,
    Json,
    activation,
    cannot,
    field,
    name_of,
    write_pixels,
)
from vlmax.interop.table import LeftOut, Row, linear, norm, under
from vlmax.models.encoders.text import TextEncoder
from vlmax.models.encoders.vit import ViT
from vlmax.systems.clip import CLIP, Softmax

# D width, H heads, K head width, F feed-forward width, T positions, V vocabulary, E joint space, y x c of a patch.
LAYER = (
    *norm("attention_norm", "layer_norm1"),
    *linear("attention/query", "self_attn.q_proj", "D H K = (H K) D", "H K = (H K)"),
    *linear("attention/key", "self_attn.k_proj", "D H K = (H K) D", "H K = (H K)"),
    *linear("attention/value", "self_attn.v_proj", "D H K = (H K) D", "H K = (H K)"),
    *linear("attention/out", "self_attn.out_proj", "H K D = D (H K)", "D = D"),
    *norm("mlp_norm", "layer_norm2"),
    *linear("mlp/up", "mlp.fc1", "D F = F D", "F = F"),
    *linear("mlp/down", "mlp.fc2", "F D = D F", "D = D"),
)
VISION = under(
    "",
    "vision_model.",
    (
        *linear("patch_embedding", "embeddings.patch_embedding", "(y x c) D = D c y x", "D = D"),
        Row("class_token", "embeddings.class_embedding", "D = D"),
        Row("positions/embedding", "embeddings.position_embedding.weight", "T D = T D"),
        *norm("pre_norm", "pre_layrnorm"),
        *under("transformer/layers/", "encoder.layers.{layer}.", LAYER),
        *norm("final_norm", "post_layernorm"),
    ),
)
TEXT = under(
    "",
    "text_model.",
    (
        Row("token_embedding/embedding", "embeddings.token_embedding.weight", "V D = V D"),
        Row("positions/embedding", "embeddings.position_embedding.weight", "T D = T D"),
        *under("transformer/layers/", "encoder.layers.{layer}.", LAYER),
        *norm("final_norm", "final_layer_norm"),
    ),
)
WHOLE = (
    *under("image/", "", VISION),
    *under("text/", "", TEXT),
    *linear("image_projection", "visual_projection", "D E = E D"),
    *linear("text_projection", "text_projection", "D E = E D"),
    Row("objective/log_scale", "logit_scale", "="),
)


def read_vision(found: Json) -> ViT:
    """The image encoder, of `vision_config`."""
    return ViT(
        **sizes(found, (768, 12, 12, 3072), "quick_gelu", 1e-5),
        patch=field(found, "patch_size", 32),
        image=side(field(found, "image_size", 224)),
    )


def read_text(found: Json) -> TextEncoder:
    """The text encoder, of `text_config`."""
    vocab, end = field(found, "vocab_size", 49_408), found.get("eos_token_id", 49_407)
    if end not in (2, vocab - 1):  # 2 means the highest id, in files from before the mistake was mended
        raise InputError(
            f"config.json: eos_token_id is {end} of {vocab}; vlmax's text encoder reads a text off at its highest id, "
            "so that must be the last one"
        )
    text = sizes(found, (512, 12, 8, 2048), "quick_gelu", 1e-5)
    return TextEncoder(**text, vocab=vocab, context=field(found, "max_position_embeddings", 77))


def sizes(found: Json, defaults: tuple[int, int, int, int], act: str, epsilon: float) -> dict[str, Any]:
    """The fields that image and text have in common; `defaults` are transformers'."""
    width, depth, heads, mlp = defaults
    return {
        "width": field(found, "hidden_size", width),
        "depth": field(found, "num_hidden_layers", depth),
        "heads": field(found, "num_attention_heads", heads),
        "mlp": field(found, "intermediate_size", mlp),
        "activation": activation(found, "hidden_act", act),
        "norm_epsilon": field(found, "layer_norm_eps", epsilon),
    }


def side(found: Any) -> int | tuple[int, int]:
    """One number for a square, or height and width."""
    return found if isinstance(found, int) else (int(found[0]), int(found[1]))


def read_whole(found: Json) -> CLIP:
    """The whole model; where old files describe a part twice, the second description counts, as in transformers."""
    vision, text = (
        field(found, f"{part}_config_dict", field(found, f"{part}_config", {})) for part in ("vision", "text")
    )
    return CLIP(image=read_vision(vision), text=read_text(text), embed=field(found, "projection_dim", 512))


def write_sizes(config: ViT | TextEncoder, tanh: str = "gelu_new") -> dict[str, Any]:
    """What `sizes` reads."""
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp,
        "hidden_act": name_of(config.activation, tanh),
        "layer_norm_eps": config.norm_epsilon,
    }


def write_vision(config: ViT) -> dict[str, Any]:
    """config.json of the image encoder."""
    cannot(config.pool == "class" and config.positions == "learned", "an image encoder without class token", "clip")
    cannot(config.pre_norm and config.final_norm, "an image encoder without norms before and after its stack", "clip")
    cannot(not config.patch_bias and config.qkv_bias, "these biases of the image encoder", "clip")
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        **write_sizes(config),
        "patch_size": config.patch,
        "image_size": square(config, "clip"),
    }


def square(config: ViT, family: str) -> int:
    """The side of a square image."""
    height, width = config.image_size
    cannot(height == width, f"images of {height} x {width}", family)
    return height


def write_text(config: TextEncoder) -> dict[str, Any]:
    """config.json of the text encoder."""
    cannot(config.causal and config.pool == "highest", "a text encoder that sees what follows", "clip")
    cannot(config.head_width is None, "a text encoder with a head", "clip")
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        **write_sizes(config),
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "bos_token_id": max(0, config.vocab - 2),
        "eos_token_id": config.vocab - 1,
        "pad_token_id": config.vocab - 1,
    }


def write_whole(config: CLIP) -> dict[str, Any]:
    """config.json of the whole model."""
    cannot(isinstance(config.image, ViT), "an image encoder that is no ViT", "clip")
    cannot(isinstance(config.objective, Softmax), "a sigmoid loss's bias", "clip")
    cannot(config.image_projection and config.text_projection, "a missing projection", "clip")
    assert isinstance(config.image, ViT) and isinstance(config.objective, Softmax)
    joint = {"projection_dim": config.embed}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        **joint,
        "logit_scale_init_value": -math.log(config.objective.temperature),
        "vision_config": {**write_vision(config.image), **joint},
        "text_config": {**write_text(config.text), **joint},
    }


def with_pixels(config: CLIP, normal: Mapping[str, tuple[float, ...]]) -> CLIP:
    """The system with the mean and standard deviation of preprocessor_config.json."""
    changes: dict[str, Any] = dict(normal)
    return dataclasses.replace(config, **changes)


def write_beside(folder: Path, config: CLIP, content: Json) -> None:
    """What happens to an image: it is resized at its shorter edge, and cropped."""
    height, width = config.image.image_size
    crop = {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    found = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": height}, **crop}
    write_pixels(folder, found, config.mean, config.std)


def patch_sizes(config: ViT | CLIP) -> dict[str, int]:
    """The letters of a patch; a ResNet has none."""
    image = config.image if isinstance(config, CLIP) else config
    return {"y": image.patch, "x": image.patch, "c": 3} if isinstance(image, ViT) else {}


def image_argument(config: ViT) -> dict[str, Any]:
    """An image."""
    return {"images": np.zeros((1, *config.image_size, 3), np.float32)}


def text_argument(config: TextEncoder) -> dict[str, Any]:
    """A text."""
    return {"tokens": np.zeros((1, config.context), np.int32)}


POSITION_IDS = LeftOut(r"(vision_model|text_model)\.embeddings\.position_ids")
# transformers 5 stores an encoder alone without the name that it has in the whole model.
BARE_VISION = ((r"^(embeddings|pre_layrnorm|encoder|post_layernorm|head)\.", r"vision_model.\1."),)
BARE_TEXT = ((r"^(embeddings|encoder|final_layer_norm|head)\.", r"text_model.\1."),)
FAMILIES = (
    Family(
        name="clip",
        model_types=("clip",),
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
        name="clip_vision",
        model_types=("clip_vision_model",),
        config=ViT,
        read=read_vision,
        write=write_vision,
        rows=VISION,
        sizes=patch_sizes,
        arguments=image_argument,
        renamed=BARE_VISION,
        left_out=(POSITION_IDS, LeftOut(r"visual_projection\..*", "an image encoder alone has no projection")),
        files=("config.json", *IMAGE_FILES),
    ),
    Family(
        name="clip_text",
        model_types=("clip_text_model",),
        config=TextEncoder,
        read=read_text,
        write=write_text,
        rows=TEXT,
        arguments=text_argument,
        renamed=BARE_TEXT,
        left_out=(POSITION_IDS, LeftOut(r"text_projection\..*", "a text encoder alone has no projection")),
    ),
)
