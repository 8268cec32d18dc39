"""Configurations and weights of transformers' BERT and BLIP text models as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from tests.parity.huggingface import Recorded, Weights, dense, norm
from vlmax.models.decoders.bert import BERT
from vlmax.models.layers.mlp import Activation

ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}


def config(found: Mapping[str, Any], **changes: Any) -> BERT:
    """Of what `tests.parity.reference_bert.run` gave."""
    theirs, context = found["config"], found.get("context")
    return BERT(
        width=theirs["hidden_size"],
        depth=theirs["num_hidden_layers"],
        heads=theirs["num_attention_heads"],
        mlp=theirs["intermediate_size"],
        vocab=theirs["vocab_size"],
        context=theirs["max_position_embeddings"],
        token_types=theirs.get("type_vocab_size", 0),
        causal=bool(found["causal"]),
        cross_width=None if context is None else context.shape[-1],
        pooler="pooled" in found,
        activation=ACTIVATIONS[theirs["hidden_act"]],
        norm_epsilon=theirs["layer_norm_eps"],
        **changes,
    )


def params(weights: Weights, config: BERT) -> dict[str, Any]:
    """Parameters of `BERTModule`."""
    embeddings = "bert.embeddings."
    more = -config.vocab % config.vocab_multiple
    table, bias = weights[f"{embeddings}word_embeddings.weight"], weights["cls.predictions.bias"]
    layers = [layer(weights, f"bert.encoder.layer.{i}", config) for i in range(config.depth)]
    tree: dict[str, Any] = {
        "vocabulary": {"embedding": np.concatenate([table, np.full((more, config.width), 7.0, np.float32)])},
        "positions": {"embedding": weights[f"{embeddings}position_embeddings.weight"]},
        "embedding_norm": norm(weights, f"{embeddings}LayerNorm"),
        "transformer": {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)},
        "head_dense": dense(weights, "cls.predictions.transform.dense"),
        "head_norm": norm(weights, "cls.predictions.transform.LayerNorm"),
        "output_bias": np.concatenate([bias, np.full(more, 7.0, np.float32)]),
    }
    if config.token_types:
        tree["token_types"] = {"embedding": weights[f"{embeddings}token_type_embeddings.weight"]}
    if config.pooler:
        tree["pooler"] = dense(weights, "bert.pooler.dense")
    return {"params": tree}


def layer(weights: Weights, prefix: str, config: BERT) -> dict[str, Any]:
    """One layer's parameters."""

    def attention(name):
        tree = {part: dense(weights, f"{prefix}.{name}.self.{part}") for part in ("query", "key", "value")}
        tree = {
            part: {"kernel": p["kernel"].reshape(-1, config.heads, p["bias"].size // config.heads)}
            | {"bias": p["bias"].reshape(config.heads, -1)}
            for part, p in tree.items()
        }
        out = dense(weights, f"{prefix}.{name}.output.dense")
        return {**tree, "out": {**out, "kernel": out["kernel"].reshape(config.heads, -1, config.width)}}

    tree = {
        "attention": attention("attention"),
        "attention_norm": norm(weights, f"{prefix}.attention.output.LayerNorm"),
        "mlp": {"up": dense(weights, f"{prefix}.intermediate.dense"), "down": dense(weights, f"{prefix}.output.dense")},
        "mlp_norm": norm(weights, f"{prefix}.output.LayerNorm"),
    }
    if config.cross_width is not None:
        tree["cross_attention"] = attention("crossattention")
        tree["cross_attention_norm"] = norm(weights, f"{prefix}.crossattention.output.LayerNorm")
    return tree


def difference(found: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> float:
    """The largest difference from the reference over its largest value: of hidden states, logits and the pooled vector.

    Padding is left out. Every foreign weight must be used and every parameter of ours be filled. The vocabulary is
    padded to a multiple of 16.
    """
    weights = Recorded(found["weights"])
    ours = config(found, vocab_multiple=16)
    tree = params(weights, ours)
    assert not weights.unread()
    module = ours.build(dtype)
    names = ("context", "context_segments", "segments", "token_types")
    arguments = {name: found[name] for name in names if name in found}
    fresh = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), found["inputs"], **arguments))
    assert jax.tree.map(np.shape, tree) == jax.tree.map(np.shape, fresh)

    @jax.jit
    def run(params, inputs, arguments):
        bound = module.bind(params)
        out = bound(inputs, **arguments, hidden=True)
        return out.hidden, out.tokens, bound.logits(out.tokens), bound.pool(out.tokens) if ours.pooler else None

    hidden, tokens, logits, pooled = run(tree, found["inputs"], arguments)
    real = found["segments"] == 1
    pairs = [
        (hidden[:, real], found["hidden"][:, real]),
        (tokens[real], found["hidden"][-1][real]),
        (logits[real], found["logits"][real]),
    ]
    if ours.pooler:
        pairs.append((pooled, found["pooled"]))
    assert all(mine.shape == theirs.shape for mine, theirs in pairs)
    return max(float(np.abs(mine - theirs).max() / np.abs(theirs).max()) for mine, theirs in pairs)


def assert_same(found: Mapping[str, Any], tolerance: float = 1e-4) -> None:
    """Holds ours against what the reference gave, in float32."""
    assert difference(found) <= tolerance
