"""Configurations and weights of transformers' language models as ours, by tables of names. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from tests.parity.huggingface import Recorded, Weights, dense, norm
from vlmax.models.decoders.gpt2 import GPT2
from vlmax.models.decoders.llama import LLaMA
from vlmax.models.decoders.opt import OPT
from vlmax.models.layers.embeddings import LinearScaling, LLaMA3Scaling, Rotary

Config = LLaMA | GPT2 | OPT


def rotary_of(rope: Mapping[str, Any]) -> Rotary:
    """Of `rope_parameters`."""
    scaling: LinearScaling | LLaMA3Scaling | None = None
    if rope["rope_type"] == "linear":
        scaling = LinearScaling(rope["factor"])
    elif rope["rope_type"] == "llama3":
        fields = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        scaling = LLaMA3Scaling(*(rope[field] for field in fields))
    else:
        assert rope["rope_type"] == "default"
    return Rotary(rope["rope_theta"], scaling)


def config_of(config: Mapping[str, Any]) -> Config:
    """Our configuration of a model of transformers."""
    kind = config["model_type"]
    if kind == "gpt2":
        assert config["activation_function"] == "gelu_new"
        return GPT2(
            width=config["n_embd"],
            depth=config["n_layer"],
            heads=config["n_head"],
            mlp=config["n_inner"] or 4 * config["n_embd"],
            vocab=config["vocab_size"],
            context=config["n_positions"],
            norm_epsilon=config["layer_norm_epsilon"],
        )
    sizes = {
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "vocab": config["vocab_size"],
        "context": config["max_position_embeddings"],
    }
    if kind == "opt":
        narrow = config["word_embed_proj_dim"] != config["hidden_size"]
        return OPT(
            **sizes,
            mlp=config["ffn_dim"],
            token_width=config["word_embed_proj_dim"] if narrow else None,
            post_norm=not config["do_layer_norm_before"],
        )
    return LLaMA(
        **sizes,
        mlp=config["intermediate_size"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim"),
        tied=config["tie_word_embeddings"],
        qkv_bias=kind == "qwen2",
        norm_epsilon=config["rms_norm_eps"],
        rotary=rotary_of(config["rope_parameters"]),
        window=config["sliding_window"] if kind == "mistral" else None,
    )


def params_of(weights: Weights, config: Config) -> dict[str, Any]:
    """Our parameters of a model of transformers."""
    convert = {LLaMA: llama_params, GPT2: gpt2_params, OPT: opt_params}[type(config)]
    return {"params": convert(weights, config)}


def stacked(depth: int, layer: Any) -> Any:
    """The trees of all layers as one, stacked on the first dimension."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *[layer(i) for i in range(depth)])


def heads(linear: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """A projection into heads."""
    kernel = linear["kernel"].reshape(len(linear["kernel"]), count, -1)
    return {"kernel": kernel, **({"bias": linear["bias"].reshape(count, -1)} if "bias" in linear else {})}


def out(linear: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """The projection back from heads."""
    return {**linear, "kernel": linear["kernel"].reshape(count, -1, linear["kernel"].shape[-1])}


def llama_params(weights: Weights, config: LLaMA) -> dict[str, Any]:
    """LLaMA, Mistral, Qwen2."""

    def scale(name):
        return {"scale": weights[f"{name}.weight"]}

    def linear(name, bias=False):
        return dense(weights, name) if bias else {"kernel": weights[f"{name}.weight"].T}

    def layer(i):
        base, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        kv_heads = config.kv_heads or config.heads
        return {
            "attention_norm": scale(f"model.layers.{i}.input_layernorm"),
            "attention": {
                "query": heads(linear(f"{base}.q_proj", config.qkv_bias), config.heads),
                "key": heads(linear(f"{base}.k_proj", config.qkv_bias), kv_heads),
                "value": heads(linear(f"{base}.v_proj", config.qkv_bias), kv_heads),
                "out": out(linear(f"{base}.o_proj"), config.heads),
            },
            "mlp_norm": scale(f"model.layers.{i}.post_attention_layernorm"),
            "mlp": {
                "gate": linear(f"{mlp}.gate_proj"),
                "up": linear(f"{mlp}.up_proj"),
                "down": linear(f"{mlp}.down_proj"),
            },
        }

    vocabulary = {"embedding": weights["model.embed_tokens.weight"]}
    if not config.tied:
        vocabulary["output"] = weights["lm_head.weight"].T
    return {
        "vocabulary": vocabulary,
        "transformer": {"layers": stacked(config.depth, layer)},
        "final_norm": scale("model.norm"),
    }


def gpt2_params(weights: Weights, config: GPT2) -> dict[str, Any]:
    """GPT-2, whose matrices are [inputs, outputs], and q, k and v one."""

    def conv(name):
        return {"kernel": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    def layer(i):
        base = f"transformer.h.{i}"
        joint = conv(f"{base}.attn.c_attn")
        thirds = [np.split(joint[key], 3, axis=-1) for key in ("kernel", "bias")]
        q, k, v = (heads({"kernel": kernel, "bias": bias}, config.heads) for kernel, bias in zip(*thirds, strict=True))
        return {
            "attention_norm": norm(weights, f"{base}.ln_1"),
            "attention": {"query": q, "key": k, "value": v, "out": out(conv(f"{base}.attn.c_proj"), config.heads)},
            "mlp_norm": norm(weights, f"{base}.ln_2"),
            "mlp": {"up": conv(f"{base}.mlp.c_fc"), "down": conv(f"{base}.mlp.c_proj")},
        }

    return {
        "vocabulary": {"embedding": weights["transformer.wte.weight"]},
        "positions": {"embedding": weights["transformer.wpe.weight"]},
        "transformer": {"layers": stacked(config.depth, layer)},
        "final_norm": norm(weights, "transformer.ln_f"),
    }


def opt_params(weights: Weights, config: OPT) -> dict[str, Any]:
    """OPT."""
    base = "model.decoder"

    def layer(i):
        name = f"{base}.layers.{i}"
        projections = {part: dense(weights, f"{name}.self_attn.{part[0]}_proj") for part in ("query", "key", "value")}
        return {
            "attention_norm": norm(weights, f"{name}.self_attn_layer_norm"),
            "attention": {
                **{part: heads(linear, config.heads) for part, linear in projections.items()},
                "out": out(dense(weights, f"{name}.self_attn.out_proj"), config.heads),
            },
            "mlp_norm": norm(weights, f"{name}.final_layer_norm"),
            "mlp": {"up": dense(weights, f"{name}.fc1"), "down": dense(weights, f"{name}.fc2")},
        }

    params: dict[str, Any] = {
        "vocabulary": {"embedding": weights[f"{base}.embed_tokens.weight"]},
        "positions": {"embedding": weights[f"{base}.embed_positions.weight"]},
        "transformer": {"layers": stacked(config.depth, layer)},
    }
    if not config.post_norm:
        params["final_norm"] = norm(weights, f"{base}.final_layer_norm")
    if config.token_width is not None:
        for name in ("project_in", "project_out"):
            params[name] = {"kernel": weights[f"{base}.{name}.weight"].T}
    return params


def assert_same(found: Mapping[str, Any], tolerance: float = 1e-4) -> None:
    """Holds our decoder against what the reference gave: every layer's output, what the head reads, and the logits.

    Every foreign weight must be used and every parameter of ours be filled; the largest difference on tokens that are
    no padding may be `tolerance` times the largest value. Our positions are those we count ourselves.
    """
    weights, config = Recorded(found["weights"]), config_of(found["config"])
    params = params_of(weights, config)
    assert not weights.unread()
    module = config.build()
    fresh = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), found["inputs"]))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, fresh)

    @jax.jit
    def run(params, tokens, segments):
        output = module.apply(params, tokens, segments=segments, hidden=True)
        return output.hidden, output.tokens, module.apply(params, output.tokens, method="logits")

    real = found["mask"].astype(bool)
    outputs = zip(run(params, found["inputs"], found["mask"]), ("hidden", "tokens", "logits"), strict=True)
    for ours, name in outputs:
        theirs = found[name][..., real, :]
        assert np.abs(ours[..., real, :] - theirs).max() <= tolerance * np.abs(theirs).max(), name
