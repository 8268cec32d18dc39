"""Configurations and weights of small transformers models as ours, by tables of names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vlmax.models.encoders.text import TextEncoder
from vlmax.models.encoders.vit import ViT
from vlmax.models.layers.mlp import Activation

Weights = Mapping[str, np.ndarray]
ACTIVATIONS: dict[str, Activation] = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}


def vit_config(config: Mapping[str, Any]) -> ViT:
    """Of a `clip_vision_model` or a `siglip_vision_model`."""
    clip = config["model_type"] == "clip_vision_model"
    return ViT(
        **sizes(config),
        patch=config["patch_size"],
        image=config["image_size"],
        pool="class" if clip else "map",
        pre_norm=clip,
        patch_bias=not clip,
    )


def text_config(config: Mapping[str, Any]) -> TextEncoder:
    """Of a `clip_text_model` or a `siglip_text_model`."""
    clip = config["model_type"] == "clip_text_model"
    return TextEncoder(
        **sizes(config),
        vocab=config["vocab_size"],
        context=config["max_position_embeddings"],
        causal=clip,
        pool="highest" if clip else "last",
        head_width=None if clip else config["projection_size"],
    )


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that image and text have in common."""
    return {
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "mlp": config["intermediate_size"],
        "activation": ACTIVATIONS[config["hidden_act"]],
        "norm_epsilon": config["layer_norm_eps"],
    }


def vit_params(weights: Weights, config: ViT) -> dict[str, Any]:
    """Parameters of `ViTModule`; the weights' names without a leading `vision_model.`."""
    patch = weights["embeddings.patch_embedding.weight"]  # [D, 3, p, p]
    params: dict[str, Any] = {
        "patch_embedding": {"kernel": patch.transpose(2, 3, 1, 0).reshape(-1, config.width)},
        "positions": {"embedding": weights["embeddings.position_embedding.weight"]},
        "transformer": {"layers": layers(weights, config.depth, config.heads)},
        "final_norm": norm(weights, "post_layernorm"),
    }
    if config.patch_bias:
        params["patch_embedding"]["bias"] = weights["embeddings.patch_embedding.bias"]
    if config.pre_norm:
        params["pre_norm"] = norm(weights, "pre_layrnorm")
    if config.pool == "class":
        params["class_token"] = weights["embeddings.class_embedding"]
    if config.pool == "map":
        params["pool"] = attention_pool(weights, config)
    return {"params": params}


def attention_pool(weights: Weights, config: ViT) -> dict[str, Any]:
    """SigLIP's head, whose q, k and v torch keeps in one matrix."""
    kernels = np.split(weights["head.attention.in_proj_weight"], 3)
    biases = np.split(weights["head.attention.in_proj_bias"], 3)
    attention = {
        name: {"kernel": kernel.T.reshape(config.width, config.heads, -1), "bias": bias.reshape(config.heads, -1)}
        for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True)
    }
    out = dense(weights, "head.attention.out_proj")
    return {
        "probe": weights["head.probe"][0],
        "attention": {**attention, "out": {**out, "kernel": out["kernel"].reshape(config.heads, -1, config.width)}},
        "norm": norm(weights, "head.layernorm"),
        "mlp": {"up": dense(weights, "head.mlp.fc1"), "down": dense(weights, "head.mlp.fc2")},
    }


def text_params(weights: Weights, config: TextEncoder) -> dict[str, Any]:
    """Parameters of `TextEncoderModule`; the weights' names without a leading `text_model.`."""
    params: dict[str, Any] = {
        "token_embedding": {"embedding": weights["embeddings.token_embedding.weight"]},
        "positions": {"embedding": weights["embeddings.position_embedding.weight"]},
        "transformer": {"layers": layers(weights, config.depth, config.heads)},
        "final_norm": norm(weights, "final_layer_norm"),
    }
    if config.head_width is not None:
        params["head"] = dense(weights, "head")
    return {"params": params}


def layers(weights: Weights, depth: int, heads: int) -> dict[str, Any]:
    """The stack's parameters, layers stacked on the first dimension."""

    def stacked(convert: Callable[[Weights, str], dict[str, np.ndarray]], name: str) -> dict[str, np.ndarray]:
        every = [convert(weights, f"encoder.layers.{i}.{name}") for i in range(depth)]
        return {key: np.stack([one[key] for one in every]) for key in every[0]}

    def projection(name: str) -> dict[str, np.ndarray]:
        tree = stacked(dense, f"self_attn.{name}")
        width = tree["kernel"].shape[-1]
        return {
            "kernel": tree["kernel"].reshape(depth, -1, heads, width // heads),
            "bias": tree["bias"].reshape(depth, heads, -1),
        }

    out = stacked(dense, "self_attn.out_proj")
    width = out["kernel"].shape[-1]
    return {
        "attention_norm": stacked(norm, "layer_norm1"),
        "attention": {
            "query": projection("q_proj"),
            "key": projection("k_proj"),
            "value": projection("v_proj"),
            "out": {**out, "kernel": out["kernel"].reshape(depth, heads, width // heads, width)},
        },
        "mlp_norm": stacked(norm, "layer_norm2"),
        "mlp": {"up": stacked(dense, "mlp.fc1"), "down": stacked(dense, "mlp.fc2")},
    }


def dense(weights: Weights, name: str) -> dict[str, np.ndarray]:
    """A torch Linear."""
    return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}


def norm(weights: Weights, name: str) -> dict[str, np.ndarray]:
    """A torch LayerNorm."""
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


class Recorded(dict):
    """Weights that remember which of them were read, so that a test can say that none was left out."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def unread(self) -> set[str]:
        """Names never asked for."""
        return set(self) - self.read


def assert_same(found: Mapping[str, Any], tolerance: float = 1e-4) -> None:
    """Holds our encoder against what the reference gave: pooled vector, tokens, hidden states.

    Every foreign weight must be used and every parameter of ours be filled; the largest difference may be `tolerance`
    times the largest value.
    """
    image = "vision" in found["config"]["model_type"]
    weights = Recorded(found["weights"])
    config = vit_config(found["config"]) if image else text_config(found["config"])
    params = vit_params(weights, config) if isinstance(config, ViT) else text_params(weights, config)
    assert not weights.unread()
    module = config.build(jnp.float32)
    fresh = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), found["inputs"]))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, fresh)
    out = jax.jit(lambda params, inputs: module.apply(params, inputs, hidden=True))(params, found["inputs"])
    # For CLIP's images alone the reference hands out the tokens without the final norm.
    tokens = out.hidden[-1] if found["config"]["model_type"] == "clip_vision_model" else out.tokens
    for ours, name in ((out.hidden, "hidden"), (tokens, "tokens"), (out.pooled, "pooled")):
        theirs = found[name]
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()
