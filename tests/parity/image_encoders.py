"""Configurations and weights of transformers' BLIP, BLIP-2 (EVA), plain ViT and DINOv2 encoders as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from tests.parity.huggingface import Recorded, Weights, dense, norm
from vlmax.models.encoders.dinov2 import DINOv2, with_registers
from vlmax.models.encoders.vit import ViT

# Where the families keep the same things; `{i}` is the layer.
BLIP = {
    "embeddings": "embeddings.patch_embedding",
    "class": "embeddings.class_embedding",
    "positions": "embeddings.position_embedding",
    "layer": "encoder.layers.{i}.",
    "attention": "self_attn",
    "out": "projection",
    "norms": ("layer_norm1", "layer_norm2"),
    "final": "post_layernorm",
}
PLAIN = {
    "embeddings": "embeddings.patch_embeddings.projection",
    "class": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "layer": "layers.{i}.",
    "attention": "attention",
    "out": "o_proj",
    "norms": ("layernorm_before", "layernorm_after"),
    "final": "layernorm",
}
DINO = {**PLAIN, "layer": "encoder.layer.{i}.", "norms": ("norm1", "norm2")}
NAMES = {
    "blip_vision_model": BLIP,
    "blip_2_vision_model": BLIP,
    "instructblip_vision_model": BLIP,
    "vit": PLAIN,
    "dinov2": DINO,
    "dinov2_with_registers": DINO,
}


def config(found: Mapping[str, Any], image: tuple[int, int]) -> ViT | DINOv2:
    """The configuration that reads images of that height and width."""
    sizes = {
        "width": found["hidden_size"],
        "depth": found["num_hidden_layers"],
        "heads": found["num_attention_heads"],
        "patch": found["patch_size"],
        "image": image,
        "norm_epsilon": found["layer_norm_eps"],
    }
    if found["model_type"].startswith("dinov2"):
        mlp = int(found["hidden_size"] * found["mlp_ratio"])
        swiglu = found["use_swiglu_ffn"]
        mlp = (int(mlp * 2 / 3) + 7) // 8 * 8 if swiglu else mlp
        ours = DINOv2(
            **sizes,
            mlp=mlp,
            table_image=found["image_size"],
            swiglu=swiglu,
            position_offset=0.0,
            qkv_bias=found["qkv_bias"],
        )
        registers = found.get("num_register_tokens", 0)
        return with_registers(ours, registers) if registers else ours
    eva = found["model_type"] in ("blip_2_vision_model", "instructblip_vision_model")
    qkv_bias = found.get("qkv_bias", True)
    return ViT(
        **sizes, mlp=found["intermediate_size"], pre_norm=False, final_norm=not eva, patch_bias=True, qkv_bias=qkv_bias
    )


def params(weights: Weights, config: ViT | DINOv2, model_type: str) -> dict[str, Any]:
    """Parameters of the encoder, layers stacked on the first dimension."""
    names = NAMES[model_type]
    patch = weights[f"{names['embeddings']}.weight"]  # [D, 3, p, p]
    layers = [layer(weights, names["layer"].format(i=i), names, config) for i in range(config.depth)]
    tree: dict[str, Any] = {
        "patch_embedding": {
            "kernel": patch.transpose(2, 3, 1, 0).reshape(-1, config.width),
            "bias": weights[f"{names['embeddings']}.bias"],
        },
        "class_token": weights[names["class"]].reshape(-1),
        "positions": {"embedding": weights[names["positions"]][0]},
        "transformer": {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)},
    }
    if isinstance(config, DINOv2) or config.final_norm:
        tree["final_norm"] = norm(weights, names["final"])
    if isinstance(config, DINOv2) and config.registers:
        tree["registers"] = weights["embeddings.register_tokens"][0]
    return {"params": tree}


def layer(weights: Weights, prefix: str, names: Mapping[str, Any], config: ViT | DINOv2) -> dict[str, Any]:
    """One layer's parameters."""
    heads, attention = config.heads, f"{prefix}{names['attention']}."
    if names is BLIP:
        kernels = np.split(weights[f"{attention}qkv.weight"], 3)
        biases = np.split(weights[f"{attention}qkv.bias"], 3) if config.qkv_bias else [None] * 3
    else:
        kernels = [weights[f"{attention}{part}_proj.weight"] for part in "qkv"]
        biases = [weights[f"{attention}{part}_proj.bias"] if config.qkv_bias else None for part in "qkv"]
    projections = {
        part: {"kernel": kernel.T.reshape(config.width, heads, -1)}
        | ({} if bias is None else {"bias": bias.reshape(heads, -1)})
        for part, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True)
    }
    out = dense(weights, attention + names["out"])
    out["kernel"] = out["kernel"].reshape(heads, -1, config.width)
    gated = isinstance(config, DINOv2) and config.swiglu
    mlp = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"} if gated else {"up": "fc1", "down": "fc2"}
    tree = {
        "attention": {**projections, "out": out},
        "attention_norm": norm(weights, prefix + names["norms"][0]),
        "mlp": {ours: dense(weights, f"{prefix}mlp.{theirs}") for ours, theirs in mlp.items()},
        "mlp_norm": norm(weights, prefix + names["norms"][1]),
    }
    if isinstance(config, DINOv2):
        tree["attention_scale"] = weights[f"{prefix}layer_scale1.lambda1"]
        tree["mlp_scale"] = weights[f"{prefix}layer_scale2.lambda1"]
    return tree


def difference(found: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> float:
    """The largest difference from the reference, over its largest value: of tokens, pooled vector and hidden states.

    Every foreign weight must be used (but for the norm that BLIP-2 adds after EVA, DINOv2's mask token and the
    plain ViT's pooler) and every parameter of ours be filled.
    """
    kind = found["config"]["model_type"]
    weights = Recorded(found["weights"])
    ours = config(found["config"], found["inputs"].shape[1:3])
    tree = params(weights, ours, kind)
    outside = {
        "blip_2_vision_model": {"post_layernorm.weight", "post_layernorm.bias"},
        "instructblip_vision_model": {"post_layernorm.weight", "post_layernorm.bias"},
        "dinov2": {"embeddings.mask_token"},
        "dinov2_with_registers": {"embeddings.mask_token"},
    }
    assert weights.unread() == outside.get(kind, set())
    module = ours.build(dtype)
    fresh = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), found["inputs"]))
    assert jax.tree.map(np.shape, tree) == jax.tree.map(np.shape, fresh)
    out = jax.jit(lambda params, inputs: module.apply(params, inputs, hidden=True))(tree, found["inputs"])
    theirs = found["hidden"][-1] if kind in ("blip_2_vision_model", "instructblip_vision_model") else found["tokens"]
    pairs = ((out.hidden, found["hidden"]), (out.tokens, theirs), (out.pooled, theirs[:, 0]))
    return max(float(np.abs(mine - reference).max() / np.abs(reference).max()) for mine, reference in pairs)


def assert_same(found: Mapping[str, Any], tolerance: float = 1e-4) -> None:
    """Holds ours against what the reference gave, in float32."""
    assert difference(found) <= tolerance
