"""DINOv2, without and with registers, as Hugging Face stores it."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlmax.errors import InputError
from vlmax.interop.clip import image_argument
from vlmax.interop.family import IMAGE_FILES, Family, Json, cannot, field, only
from vlmax.interop.table import LeftOut, Row, linear, norm, under
from vlmax.interop.vit import ATTENTION, EMBEDDINGS
from vlmax.models.encoders.dinov2 import DINOv2

# The letters are the plain ViT's; R registers.
PLAIN = (
    *linear("mlp/up", "mlp.fc1", "D F = F D", "F = F"),
    *linear("mlp/down", "mlp.fc2", "F D = D F", "D = D"),
)
SWIGLU = (
    *linear("mlp/gate", "mlp.weights_in", "D F = (2 F) D", "F = (2 F)", part=0),
    *linear("mlp/up", "mlp.weights_in", "D F = (2 F) D", "F = (2 F)", part=1),
    *linear("mlp/down", "mlp.weights_out", "F D = D F", "D = D"),
)
LAYER = (
    *norm("attention_norm", "norm1"),
    *ATTENTION,
    Row("attention_scale", "layer_scale1.lambda1", "D = D"),
    *norm("mlp_norm", "norm2"),
    Row("mlp_scale", "layer_scale2.lambda1", "D = D"),
)


def rows(config: DINOv2) -> tuple[Row, ...]:
    """The table."""
    return (
        *EMBEDDINGS,
        Row("registers", "embeddings.register_tokens", "R D = 1 R D"),
        *under("transformer/layers/", "encoder.layer.{layer}.", (*LAYER, *(SWIGLU if config.swiglu else PLAIN))),
        *norm("final_norm", "layernorm"),
    )


def read(found: Json) -> DINOv2:
    """Our configuration, for images of the size that the positions were trained on."""
    registers = field(found, "num_register_tokens", 4) if found["model_type"].endswith("registers") else 0
    swiglu = field(found, "use_swiglu_ffn", False)
    only(found, "hidden_act", ("gelu",), "gelu")
    width = field(found, "hidden_size", 768)
    mlp = int(width * field(found, "mlp_ratio", 4))
    table = field(found, "image_size", 224)
    if not isinstance(table, int):
        raise InputError(f"config.json: image_size is {table!r}; vlmax's model has a table of a square, one number")
    return DINOv2(
        width=width,
        depth=field(found, "num_hidden_layers", 12),
        heads=field(found, "num_attention_heads", 12),
        mlp=gated_width(mlp) if swiglu else mlp,
        patch=field(found, "patch_size", 16 if registers else 14),
        image=table,
        table_image=table,
        antialias=bool(registers),
        position_offset=0.0,
        registers=registers,
        swiglu=swiglu,
        norm_epsilon=field(found, "layer_norm_eps", 1e-6),
        qkv_bias=field(found, "qkv_bias", True),
    )


def gated_width(mlp: int) -> int:
    """The width of each half of a gated feed-forward part, as the published code rounds it."""
    return (int(mlp * 2 / 3) + 7) // 8 * 8


def write(config: DINOv2) -> dict[str, Any]:
    """config.json."""
    registers = config.registers > 0
    ratio = next((r for r in range(1, 65) if _mlp(config.width * r, config.swiglu) == config.mlp), 0)
    cannot(ratio > 0, f"a feed-forward width of {config.mlp} at a width of {config.width}", "dinov2")
    exact = config.grid == config.table_grid or (config.antialias == registers and not config.position_offset)
    cannot(exact, "this way to interpolate positions", "dinov2")
    return {
        "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "mlp_ratio": ratio,
        "hidden_act": "gelu",
        "layer_norm_eps": config.norm_epsilon,
        "image_size": config.table_image,
        "patch_size": config.patch,
        "num_channels": 3,
        "qkv_bias": config.qkv_bias,
        "use_swiglu_ffn": config.swiglu,
        **({"num_register_tokens": config.registers} if registers else {}),
    }


def _mlp(mlp: int, swiglu: bool) -> int:
    return gated_width(mlp) if swiglu else mlp


FAMILY = Family(
    name="dinov2",
    model_types=("dinov2", "dinov2_with_registers"),
    config=DINOv2,
    read=read,
    write=write,
    rows=rows,
    sizes=lambda config: {"y": config.patch, "x": config.patch, "c": 3},
    arguments=image_argument,
    renamed=((r"^dinov2(_with_registers)?\.", ""),),
    left_out=(
        LeftOut(r"classifier\..*", "vlmax's image encoders have no classifier"),
        LeftOut(r"embeddings\.mask_token", "vlmax's image encoders have no token for masked patches"),
    ),
    written=lambda config, names: {"embeddings.mask_token": np.zeros((1, config.width), np.float32)},
    files=("config.json", *IMAGE_FILES),
)
