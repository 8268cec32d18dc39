"""The plain ViT as Hugging Face stores it, without a classifier."""

from __future__ import annotations

from typing import Any

from vlmax.interop.clip import image_argument, patch_sizes, side, sizes, square, write_sizes
from vlmax.interop.family import IMAGE_FILES, Family, Json, cannot, field
from vlmax.interop.table import LeftOut, Row, linear, norm, under
from vlmax.models.encoders.vit import ViT

# D width, H heads, K head width, F feed-forward width, T positions, y x c of a patch.
ATTENTION = (
    *linear("attention/query", "attention.attention.query", "D H K = (H K) D", "H K = (H K)"),
    *linear("attention/key", "attention.attention.key", "D H K = (H K) D", "H K = (H K)"),
    *linear("attention/value", "attention.attention.value", "D H K = (H K) D", "H K = (H K)"),
    *linear("attention/out", "attention.output.dense", "H K D = D (H K)", "D = D"),
)
EMBEDDINGS = (
    *linear("patch_embedding", "embeddings.patch_embeddings.projection", "(y x c) D = D c y x", "D = D"),
    Row("class_token", "embeddings.cls_token", "D = 1 1 D"),
    Row("positions/embedding", "embeddings.position_embeddings", "T D = 1 T D"),
)
LAYER = (
    *norm("attention_norm", "layernorm_before"),
    *ATTENTION,
    *norm("mlp_norm", "layernorm_after"),
    *linear("mlp/up", "intermediate.dense", "D F = F D", "F = F"),
    *linear("mlp/down", "output.dense", "F D = D F", "D = D"),
)
ROWS = (
    *EMBEDDINGS,
    *under("transformer/layers/", "encoder.layer.{layer}.", LAYER),
    *norm("final_norm", "layernorm"),
)


def read(found: Json) -> ViT:
    """Our configuration."""
    return ViT(
        **sizes(found, (768, 12, 12, 3072), "gelu", 1e-12),
        patch=field(found, "patch_size", 16),
        image=side(field(found, "image_size", 224)),
        qkv_bias=field(found, "qkv_bias", True),
        pre_norm=False,
        patch_bias=True,
        init="xavier",
    )


def write(config: ViT) -> dict[str, Any]:
    """config.json."""
    cannot(config.pool == "class" and config.positions == "learned", "an image encoder without class token", "vit")
    cannot(not config.pre_norm and config.final_norm, "these norms of the image encoder", "vit")
    cannot(config.patch_bias, "patches without bias", "vit")
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        **write_sizes(config),
        "patch_size": config.patch,
        "image_size": square(config, "vit"),
        "num_channels": 3,
        "qkv_bias": config.qkv_bias,
    }


FAMILY = Family(
    name="vit",
    model_types=("vit",),
    config=ViT,
    read=read,
    write=write,
    rows=ROWS,
    sizes=patch_sizes,
    arguments=image_argument,
    renamed=((r"^vit\.", ""),),
    left_out=(
        LeftOut(r"classifier\..*", "vlmax's image encoders have no classifier"),
        LeftOut(r"pooler\..*", "vlmax's image encoders have no dense layer on the class token"),
        LeftOut(r"embeddings\.mask_token", "vlmax's image encoders have no token for masked patches"),
    ),
    files=("config.json", *IMAGE_FILES),
)
