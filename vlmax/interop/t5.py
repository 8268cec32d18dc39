"""T5 v1.0 and v1.1 and Flan-T5, as Hugging Face stores them."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlmax.interop.family import Family, Json, activation, cannot, field, name_of, only
from vlmax.interop.table import LeftOut, Row, linear, under
from vlmax.models.decoders.t5 import T5


# D width, H heads, K head width, F feed-forward width, V vocabulary, B buckets of distances.
def attention(own: str, foreign: str) -> tuple[Row, ...]:
    """One attention and the norm before it."""
    norm, name = Row(f"{own}_norm/scale", "layer_norm.weight", "D = D"), foreign.split(".")[-1]
    projections = (
        *linear("query", "q", "D H K = (H K) D"),
        *linear("key", "k", "D H K = (H K) D"),
        *linear("value", "v", "D H K = (H K) D"),
        *linear("out", "o", "H K D = D (H K)"),
    )
    block = foreign.removesuffix(name)
    return (*under("", block, (norm,)), *under(f"{own}/", f"{foreign}.", projections))


def feed_forward(block: str) -> tuple[Row, ...]:
    """The feed-forward part, gated or not: a model has either `wi` or the two others."""
    rows = (
        Row("mlp_norm/scale", "layer_norm.weight", "D = D"),
        *linear("mlp/gate", "DenseReluDense.wi_0", "D F = F D"),
        *linear("mlp/up", "DenseReluDense.wi_1", "D F = F D"),
        *linear("mlp/down", "DenseReluDense.wo", "F D = D F"),
    )
    return under("", block, rows)


def stack(own: str, foreign: str, layer: tuple[Row, ...]) -> tuple[Row, ...]:
    """The encoder or the decoder; the first layer holds the bias of distances."""
    distances = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    rows = (
        Row("relative_bias", distances, "B H = B H"),
        *under("layers/", "block.{layer}.", layer),
        Row("final_norm/scale", "final_layer_norm.weight", "D = D"),
    )
    return under(own, foreign, rows)


ENCODER = (*attention("attention", "layer.0.SelfAttention"), *feed_forward("layer.1."))
DECODER = (
    *attention("attention", "layer.0.SelfAttention"),
    *attention("cross_attention", "layer.1.EncDecAttention"),
    *feed_forward("layer.2."),
)
ROWS = (
    Row("vocabulary/embedding", "shared.weight", "V D = V D"),
    *stack("encoder/", "encoder.", ENCODER),
    *stack("decoder/", "decoder.", DECODER),
    Row("vocabulary/output", "lm_head.weight", "D V = V D"),
)
FIRST = tuple(
    Row(row.own, row.foreign.replace(".wi_1.", ".wi."), row.layout)
    for row in ROWS
    if not row.own.endswith("gate/kernel")
)
"""The same with one matrix into the feed-forward part (v1.0)."""

PARTS = {
    "relu": (False, "relu"),
    "gelu": (False, "gelu"),
    "gelu_new": (False, "gelu_new"),
    "gated-gelu": (True, "gelu_new"),
    "gated-silu": (True, "silu"),
    "gated-relu": (True, "relu"),
}
"""`feed_forward_proj` -> `is_gated_act` and `dense_act_fn`, where the file does not have those."""


def read(found: Json) -> T5:
    """Our configuration."""
    only(found, "feed_forward_proj", tuple(PARTS), "relu")
    gated, act = PARTS[field(found, "feed_forward_proj", "relu")]
    depth = field(found, "num_layers")
    decoder_depth = field(found, "num_decoder_layers", depth)
    # transformers 5 writes whether the output is scaled; before, the word was that of tying.
    tied = found.get("scale_decoder_outputs", found.get("tie_word_embeddings") is not False)
    return T5(
        width=field(found, "d_model"),
        depth=depth,
        decoder_depth=None if decoder_depth == depth else decoder_depth,
        heads=field(found, "num_heads"),
        head_dim=field(found, "d_kv", 64),
        mlp=field(found, "d_ff"),
        vocab=field(found, "vocab_size"),
        context=field(found, "n_positions", 512),
        buckets=field(found, "relative_attention_num_buckets", 32),
        max_distance=field(found, "relative_attention_max_distance", 128),
        tied=tied,
        gated=field(found, "is_gated_act", gated),
        activation=activation(found, "dense_act_fn", act),  # not always as above: that of BLIP-2 is plain GELU
        norm_epsilon=field(found, "layer_norm_epsilon", 1e-6),
    )


def write(config: T5) -> dict[str, Any]:
    """config.json."""
    names, act = {part: name for name, part in PARTS.items()}, name_of(config.activation)
    plain = config.gated and act == "gelu"  # which "gated-gelu" does not mean
    part = (config.gated, "gelu_new" if plain else act)
    cannot(part in names, f"gated {config.gated} with activation {config.activation}", "t5")
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "d_model": config.width,
        "num_layers": config.depth,
        "num_decoder_layers": config.decoder_layers,
        "num_heads": config.heads,
        "d_kv": config.head_dim,
        "d_ff": config.mlp,
        "vocab_size": config.vocab,
        **({} if config.context == 512 else {"n_positions": config.context}),
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "tie_word_embeddings": config.tied,
        "feed_forward_proj": names[part],
        **({"dense_act_fn": act} if plain else {}),
        "layer_norm_epsilon": config.norm_epsilon,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


FAMILY = Family(
    name="t5",
    model_types=("t5",),
    config=T5,
    read=read,
    write=write,
    rows=lambda config: ROWS if config.gated else FIRST,
    sizes=lambda config: {"V": config.vocab},
    arguments=lambda config: dict.fromkeys(("inputs", "targets"), np.zeros((1, 1), np.int32)),
    left_out=(LeftOut(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"),),  # never read
    same={
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    },
)
