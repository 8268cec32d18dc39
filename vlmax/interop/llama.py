"""LLaMA 1, 2 and 3, Vicuna, Mistral and Qwen2, as Hugging Face stores them."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlmax.errors import InputError
from vlmax.interop.family import Family, Json, field, only
from vlmax.interop.table import LeftOut, Row, linear, under
from vlmax.models.decoders.llama import LLaMA
from vlmax.models.layers.embeddings import LinearScaling, LLaMA3Scaling, Rotary

# D width, H heads, G heads of keys and values, K head width, F feed-forward width, V vocabulary.
LAYER = (
    Row("attention_norm/scale", "input_layernorm.weight", "D = D"),
    *linear("attention/query", "self_attn.q_proj", "D H K = (H K) D", "H K = (H K)"),
    *linear("attention/key", "self_attn.k_proj", "D G K = (G K) D", "G K = (G K)"),
    *linear("attention/value", "self_attn.v_proj", "D G K = (G K) D", "G K = (G K)"),
    *linear("attention/out", "self_attn.o_proj", "H K D = D (H K)"),
    Row("mlp_norm/scale", "post_attention_layernorm.weight", "D = D"),
    *linear("mlp/gate", "mlp.gate_proj", "D F = F D"),
    *linear("mlp/up", "mlp.up_proj", "D F = F D"),
    *linear("mlp/down", "mlp.down_proj", "F D = D F"),
)
ROWS = (
    Row("vocabulary/embedding", "model.embed_tokens.weight", "V D = V D"),
    *under("transformer/layers/", "model.layers.{layer}.", LAYER),
    Row("final_norm/scale", "model.norm.weight", "D = D"),
    Row("vocabulary/output", "lm_head.weight", "D V = V D"),
)

# What transformers takes where config.json says nothing.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32_768, "num_key_value_heads": 32, "sliding_window": 4096},
}


def read(found: Json) -> LLaMA:
    """Our configuration."""
    kind = found["model_type"]
    found = {**DEFAULTS[kind], **found}
    only(found, "hidden_act", ("silu",), "silu")
    only(found, "attention_bias", (False,), False)
    only(found, "mlp_bias", (False,), False)
    heads = field(found, "num_attention_heads")
    kv_heads = field(found, "num_key_value_heads", heads)
    head_dim = field(found, "head_dim", None)
    width = field(found, "hidden_size")
    return LLaMA(
        width=width,
        depth=field(found, "num_hidden_layers"),
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        head_dim=None if head_dim is None or head_dim * heads == width else head_dim,
        mlp=field(found, "intermediate_size"),
        vocab=field(found, "vocab_size"),
        context=field(found, "max_position_embeddings"),
        tied=field(found, "tie_word_embeddings", False),
        qkv_bias=kind == "qwen2",
        norm_epsilon=field(found, "rms_norm_eps", 1e-6),
        rotary=rotary(found),
        window=window(found),
    )


def window(found: Json) -> int | None:
    """The sliding window, which all layers have or none."""
    size = found.get("sliding_window")
    if found["model_type"] == "llama" or size is None:
        return None
    if found["model_type"] == "mistral":
        return size
    depth = field(found, "num_hidden_layers")
    first = found.get("max_window_layers", 28)
    kinds = found.get("layer_types") or ["sliding_attention" if i >= first else "full_attention" for i in range(depth)]
    if not found.get("use_sliding_window", False) or set(kinds) == {"full_attention"}:
        return None
    if set(kinds) != {"sliding_attention"}:
        raise InputError("config.json: only some layers have a sliding window; vlmax's model has one for all or none")
    return size


def rotary(found: Json) -> Rotary:
    """Rotary positions: `rope_parameters`, or `rope_theta` and `rope_scaling` of older files, which come first."""
    rope = field(found, "rope_scaling", {}) or field(found, "rope_parameters", {})
    theta = rope.get("rope_theta", field(found, "rope_theta", 10_000.0))
    only({**found, **rope}, "partial_rotary_factor", (1, None), None)
    kind = rope.get("rope_type", rope.get("type", "default"))
    scaling: LinearScaling | LLaMA3Scaling | None = None
    if kind == "linear":
        scaling = LinearScaling(float(field(rope, "factor")))
    elif kind == "llama3":
        before = rope.get("original_max_position_embeddings", field(found, "max_position_embeddings"))
        low, high = field(rope, "low_freq_factor"), field(rope, "high_freq_factor")
        scaling = LLaMA3Scaling(float(field(rope, "factor")), float(low), float(high), before)
    elif kind != "default":
        raise InputError(f"config.json: rope_type is {kind!r}; vlmax knows default, linear and llama3")
    return Rotary(float(theta), scaling)


def write(config: LLaMA) -> dict[str, Any]:
    """config.json."""
    kind = "qwen2" if config.qkv_bias else "llama" if config.window is None else "mistral"
    name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}[kind]
    windows: dict[str, dict[str, Any]] = {
        "llama": {"attention_bias": False, "mlp_bias": False},
        "mistral": {"sliding_window": config.window},
        "qwen2": {
            "use_sliding_window": config.window is not None,
            "sliding_window": config.window,
            "max_window_layers": 0 if config.window is not None else config.depth,
            "layer_types": ["full_attention" if config.window is None else "sliding_attention"] * config.depth,
        },
    }
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": kind,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads or config.heads,
        **({} if kind == "qwen2" and config.head_dim is None else {"head_dim": config.stack().head_width}),
        "intermediate_size": config.mlp,
        "hidden_act": "silu",
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": config.tied,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rotary.theta,
        "rope_scaling": scaling(config.rotary),
        "rope_parameters": {"rope_theta": config.rotary.theta, **(scaling(config.rotary) or {"rope_type": "default"})},
        **windows[kind],
    }


def scaling(found: Rotary) -> dict[str, Any] | None:
    """`rope_scaling`."""
    if found.scaling is None:
        return None
    if isinstance(found.scaling, LinearScaling):
        return {"rope_type": "linear", "factor": found.scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": found.scaling.factor,
        "low_freq_factor": found.scaling.low_frequency,
        "high_freq_factor": found.scaling.high_frequency,
        "original_max_position_embeddings": found.scaling.context,
    }


FAMILY = Family(
    name="llama",
    model_types=("llama", "mistral", "qwen2"),
    config=LLaMA,
    read=read,
    write=write,
    rows=ROWS,
    sizes=lambda config: {"V": config.vocab},
    arguments=lambda config: {"inputs": np.zeros((1, 1), np.int32)},
    renamed=((r"^(embed_tokens|layers|norm)\.", r"model.\1."),),
    left_out=(LeftOut(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),),
    same={"lm_head.weight": "model.embed_tokens.weight"},
)
