"""The image encoder of BLIP, BLIP-2 and InstructBLIP as Hugging Face stores it: one layout, with or without last norm.

The norm after the stack is the encoder's own in BLIP; BLIP-2 gives the name to the trained norm before the Q-Former.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmax.interop.clip import side, sizes, square, write_sizes
from vlmax.interop.family import Json, cannot, field, write_pixels
from vlmax.interop.table import Row, linear, norm, thirds, under
from vlmax.models.encoders.vit import ViT
from vlmax.models.pixels import Colour

# D width, H heads, K head width, F feed-forward width, T positions, y x c of a patch.
LAYER = (
    *norm("attention_norm", "layer_norm1"),
    *thirds("kernel", "self_attn.qkv.weight", "D H K = (3 H K) D"),
    *thirds("bias", "self_attn.qkv.bias", "H K = (3 H K)"),
    *linear("attention/out", "self_attn.projection", "H K D = D (H K)", "D = D"),
    *norm("mlp_norm", "layer_norm2"),
    *linear("mlp/up", "mlp.fc1", "D F = F D", "F = F"),
    *linear("mlp/down", "mlp.fc2", "F D = D F", "D = D"),
)
ROWS = under(
    "image/",
    "vision_model.",
    (
        *linear("patch_embedding", "embeddings.patch_embedding", "(y x c) D = D c y x", "D = D"),
        Row("class_token", "embeddings.class_embedding", "D = 1 1 D"),
        Row("positions/embedding", "embeddings.position_embedding", "T D = 1 T D"),
        *under("transformer/layers/", "encoder.layers.{layer}.", LAYER),
    ),
)


def read(found: Json) -> ViT:
    """BLIP's encoder, of `vision_config`."""
    return _read(found, (768, 12, 12, 3072), 1e-5, patch=16, image=384)


def read_frozen(found: Json) -> ViT:
    """BLIP-2's encoder, of `vision_config`, without the norm after its stack."""
    return _read(found, (1408, 39, 16, 6144), 1e-6, patch=14, image=224, final_norm=False)


def _read(
    found: Json, defaults: tuple[int, int, int, int], epsilon: float, patch: int, image: int, final_norm: bool = True
) -> ViT:
    return ViT(
        **sizes(found, defaults, "gelu", epsilon),
        patch=field(found, "patch_size", patch),
        image=side(field(found, "image_size", image)),
        qkv_bias=field(found, "qkv_bias", True),
        pre_norm=False,
        final_norm=final_norm,
        patch_bias=True,
        init="normal",
    )


def write(config: Any, family: str, final_norm: bool = True) -> dict[str, Any]:
    """`vision_config`; raises InputError for another kind of encoder."""
    cannot(isinstance(config, ViT), f"an image encoder that is a {type(config).__name__}, not a ViT", family)
    assert isinstance(config, ViT)
    cannot(config.pool == "class" and config.positions == "learned", "an image encoder without class token", family)
    cannot(not config.pre_norm and config.final_norm == final_norm, "these norms of the image encoder", family)
    cannot(config.patch_bias, "patches without bias", family)
    cannot(config.qkv_bias or not final_norm, "queries, keys and values without bias", family)
    return {
        **write_sizes(config),
        "patch_size": config.patch,
        "image_size": square(config, family),
        **({} if final_norm else {"qkv_bias": config.qkv_bias}),
    }


def patch_sizes(config: Any) -> dict[str, int]:
    """The letters of a patch; other encoders than a ViT have none."""
    return {"y": config.patch, "x": config.patch, "c": 3} if isinstance(config, ViT) else {}


def write_beside(folder: Path, image: ViT, mean: Colour, std: Colour) -> None:
    """What happens to an image: it is resized, whatever its shape."""
    height, width = image.image_size
    size = {"height": height, "width": width}
    write_pixels(folder, {"image_processor_type": "BlipImageProcessor", "size": size}, mean, std)
