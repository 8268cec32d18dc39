"""Configurations and weights of transformers' T5 as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from tests.parity.huggingface import Recorded, Weights
from vlmax.models.decoders.t5 import T5
from vlmax.models.layers.mlp import Activation

ACTIVATIONS: dict[str, Activation] = {"gated-gelu": "gelu_tanh", "gated-silu": "silu", "relu": "relu"}


def config(found: Mapping[str, Any], **changes: Any) -> T5:
    """Of a `t5` model."""
    return T5(
        width=found["d_model"],
        depth=found["num_layers"],
        decoder_depth=found["num_decoder_layers"],
        heads=found["num_heads"],
        head_dim=found["d_kv"],
        mlp=found["d_ff"],
        vocab=found["vocab_size"],
        buckets=found["relative_attention_num_buckets"],
        max_distance=found["relative_attention_max_distance"],
        tied=found["scale_decoder_outputs"],
        gated=found["feed_forward_proj"].startswith("gated"),
        activation=ACTIVATIONS[found["feed_forward_proj"]],
        norm_epsilon=found["layer_norm_epsilon"],
        **changes,
    )


def params(weights: Weights, config: T5) -> dict[str, Any]:
    """Parameters of `T5Module`."""
    vocabulary = {"embedding": padded(weights["shared.weight"], config)}
    if not config.tied:
        vocabulary["output"] = padded(weights["lm_head.weight"], config).T
    stacks = {
        "encoder": stack(weights, "encoder", config.depth, config),
        "decoder": stack(weights, "decoder", config.decoder_layers, config),
    }
    return {"params": {"vocabulary": vocabulary, **stacks}}


def padded(table: np.ndarray, config: T5) -> np.ndarray:
    """The table with rows up to the multiple; what they hold must not matter."""
    more = -len(table) % config.vocab_multiple
    return np.concatenate([table, np.full((more, table.shape[1]), 7.0, np.float32)])


def stack(weights: Weights, side: str, depth: int, config: T5) -> dict[str, Any]:
    """The encoder's or the decoder's, layers stacked on the first dimension."""
    last = 2 if side == "decoder" else 1
    dense = {"up": "wi_1", "gate": "wi_0", "down": "wo"} if config.gated else {"up": "wi", "down": "wo"}

    def attention(name):
        heads = config.heads
        tree = {
            ours: {"kernel": weights[f"{name}.{theirs}.weight"].T.reshape(config.width, heads, -1)}
            for ours, theirs in {"query": "q", "key": "k", "value": "v"}.items()
        }
        return {**tree, "out": {"kernel": weights[f"{name}.o.weight"].T.reshape(heads, -1, config.width)}}

    def layer(i):
        block = f"{side}.block.{i}.layer"
        tree = {
            "attention_norm": {"scale": weights[f"{block}.0.layer_norm.weight"]},
            "attention": attention(f"{block}.0.SelfAttention"),
            "mlp_norm": {"scale": weights[f"{block}.{last}.layer_norm.weight"]},
            "mlp": {
                ours: {"kernel": weights[f"{block}.{last}.DenseReluDense.{theirs}.weight"].T}
                for ours, theirs in dense.items()
            },
        }
        if side == "decoder":
            tree["cross_attention_norm"] = {"scale": weights[f"{block}.1.layer_norm.weight"]}
            tree["cross_attention"] = attention(f"{block}.1.EncDecAttention")
        return tree

    return {
        "relative_bias": weights[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"],
        "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *map(layer, range(depth))),
        "final_norm": {"scale": weights[f"{side}.final_layer_norm.weight"]},
    }


def difference(found: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> float:
    """The largest difference from the reference, over its largest value: of all hidden states and the logits.

    Padding is left out. Every foreign weight must be used and every parameter of ours be filled. The vocabulary is
    padded to a multiple of 16.
    """
    weights = Recorded(found["weights"])
    ours = config(found["config"], vocab_multiple=16)
    tree = params(weights, ours)
    assert not weights.unread()
    module = ours.build(dtype)
    inputs, targets, segments = found["inputs"], found["targets"], found["segments"]
    fresh = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), inputs, targets))
    assert jax.tree.map(np.shape, tree) == jax.tree.map(np.shape, fresh)

    @jax.jit
    def run(params, inputs, targets, segments):
        bound = module.bind(params)
        encoded = bound.encode(inputs, segments=segments, hidden=True)
        out = bound.decode(targets, encoded.tokens, context_segments=segments, hidden=True)
        return (encoded.hidden, encoded.tokens), (out.hidden, out.tokens), bound.logits(out.tokens)

    (encoder_hidden, encoded), (hidden, tokens), logits = run(tree, inputs, targets, segments)
    real = segments == 1
    pairs = [
        (encoded[real], found["encoded"][real]),
        (encoder_hidden[:-1, real], found["encoder_hidden"][:, real]),
        (tokens, found["tokens"]),
        (hidden[:-1], found["hidden"]),
        (logits, found["logits"]),
    ]
    assert all(mine.shape == theirs.shape for mine, theirs in pairs)
    return max(float(np.abs(mine - theirs).max() / np.abs(theirs).max()) for mine, theirs in pairs if theirs.size)


def assert_same(found: Mapping[str, Any], tolerance: float = 1e-4) -> None:
    """Holds ours against what the reference gave, in float32."""
    assert difference(found) <= tolerance
