"""The smallest model of every family and of every form that its table has, with random values."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from vlmax.interop.families import of_config
from vlmax.interop.model import outline
from vlmax.models.decoders.bert import BERT
from vlmax.models.decoders.gpt2 import GPT2
from vlmax.models.decoders.llama import LLaMA
from vlmax.models.decoders.opt import OPT
from vlmax.models.decoders.t5 import T5
from vlmax.models.encoders.dinov2 import DINOv2, with_registers
from vlmax.models.encoders.resnet import ModifiedResNet, ResNet
from vlmax.models.encoders.text import TextEncoder
from vlmax.models.encoders.vit import ViT
from vlmax.models.layers.embeddings import LinearScaling, LLaMA3Scaling, Rotary
from vlmax.systems.clip import CLIP, Sigmoid

SIZES: dict[str, Any] = {"width": 16, "depth": 2, "heads": 4, "mlp": 24}
PICTURE: dict[str, Any] = {**SIZES, "image": 12, "patch": 4}
LANGUAGE: dict[str, Any] = {**SIZES, "vocab": 23, "context": 20}
TEXT = TextEncoder(**{**LANGUAGE, "width": 8, "heads": 2, "vocab": 24}, activation="quick_gelu")
SIGLIP_IMAGE = ViT(
    **PICTURE, pool="map", pre_norm=False, patch_bias=True, activation="gelu_tanh", norm_epsilon=1e-6, init="xavier"
)
SIGLIP_TEXT = TextEncoder(
    **{**LANGUAGE, "vocab": 24},
    causal=False,
    pool="last",
    head_width=16,
    activation="gelu_tanh",
    norm_epsilon=1e-6,
    init="xavier",
)
CLIP_IMAGE = ViT(**PICTURE, activation="quick_gelu")
RESNET = ModifiedResNet(stem=8, depths=(1, 2, 1, 3), heads=2, output=8, image=32)
DINO = DINOv2(**{**PICTURE, "mlp": 64}, table_image=12, position_offset=0.0)

MODELS: dict[str, tuple[str, Any]] = {
    "llama": ("huggingface", LLaMA(**LANGUAGE)),
    "llama, grouped, tied, padded": ("huggingface", LLaMA(**LANGUAGE, kv_heads=2, tied=True, vocab_multiple=8)),
    "llama 3.1, wide heads": (
        "huggingface",
        LLaMA(**LANGUAGE, head_dim=8, kv_heads=1, rotary=Rotary(5e5, LLaMA3Scaling(factor=32.0, context=8))),
    ),
    "vicuna 16k": ("huggingface", LLaMA(**LANGUAGE, rotary=Rotary(scaling=LinearScaling(4.0)))),
    "mistral": ("huggingface", LLaMA(**LANGUAGE, kv_heads=2, window=7, rotary=Rotary(1e6))),
    "qwen2": ("huggingface", LLaMA(**LANGUAGE, kv_heads=2, qkv_bias=True, tied=True, norm_epsilon=1e-6)),
    "qwen2, window": ("huggingface", LLaMA(**LANGUAGE, qkv_bias=True, window=5)),
    "gpt2": ("huggingface", GPT2(**LANGUAGE)),
    "gpt2, padded": ("huggingface", GPT2(**LANGUAGE, vocab_multiple=16)),
    "opt": ("huggingface", OPT(**LANGUAGE)),
    "opt 350m": ("huggingface", OPT(**LANGUAGE, token_width=8, post_norm=True)),
    "t5 v1.1": ("huggingface", T5(**LANGUAGE, head_dim=6, vocab_multiple=8)),
    "t5 of BLIP-2": ("huggingface", T5(**LANGUAGE, head_dim=4, activation="gelu")),
    "t5 v1.0, another decoder": (
        "huggingface",
        T5(**LANGUAGE, head_dim=4, decoder_depth=3, tied=True, gated=False, activation="relu"),
    ),
    "bert": ("huggingface", BERT(**LANGUAGE, vocab_multiple=8)),
    "bert, pooler": ("huggingface", BERT(**LANGUAGE, predicts=False, pooler=True)),
    "bert, causal": ("huggingface", BERT(**LANGUAGE, causal=True)),
    "bert, causal, cross-attention": ("huggingface", BERT(**LANGUAGE, causal=True, cross_width=16)),
    "clip": ("huggingface", CLIP(CLIP_IMAGE, TEXT, embed=12)),
    "clip image": ("huggingface", CLIP_IMAGE),
    "clip text": ("huggingface", TEXT),
    "clip, open_clip layout": ("open_clip", CLIP(CLIP_IMAGE, TEXT, embed=12)),
    "clip resnet, open_clip layout": ("open_clip", CLIP(RESNET, TEXT, embed=8, image_projection=False)),
    "siglip": (
        "huggingface",
        CLIP(
            SIGLIP_IMAGE,
            SIGLIP_TEXT,
            embed=16,
            objective=Sigmoid(),
            image_projection=False,
            text_projection=False,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
        ),
    ),
    "siglip image": ("huggingface", SIGLIP_IMAGE),
    "siglip text": ("huggingface", SIGLIP_TEXT),
    "vit": ("huggingface", ViT(**PICTURE, pre_norm=False, patch_bias=True, norm_epsilon=1e-12, init="xavier")),
    "vit, no bias": (
        "huggingface",
        ViT(**PICTURE, pre_norm=False, patch_bias=True, norm_epsilon=1e-12, init="xavier", qkv_bias=False),
    ),
    "dinov2": ("huggingface", DINO),
    "dinov2, swiglu": (
        "huggingface",
        DINOv2(**{**PICTURE, "mlp": 48}, table_image=12, position_offset=0.0, swiglu=True),
    ),
    "dinov2, registers": ("huggingface", with_registers(DINO, 3)),
    "resnet": ("huggingface", ResNet(stem=4, depths=(1, 2, 1, 3))),
}


def random_arrays(config: Any, seed: int = 0, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Values of every array; rows of the vocabulary that no token has are zero, as they are read."""
    rng = np.random.default_rng(seed)
    shape = outline(config, of_config(config))
    arrays = {}
    for path, size in shape.shapes().items():
        values = rng.normal(size=size).astype(dtype)
        for axis, name in enumerate(shape.axes(path)):
            if name == "vocab" and hasattr(config, "vocab"):
                values[(slice(None),) * axis + (slice(config.vocab, None),)] = 0
        arrays[path] = values
    return arrays


def same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Holds arrays by path against each other, bit for bit."""
    assert set(found) == set(wanted)
    for path, array in found.items():
        assert jnp.dtype(array.dtype) == jnp.dtype(wanted[path].dtype), path
        np.testing.assert_array_equal(np.asarray(array), np.asarray(wanted[path]), err_msg=path)
