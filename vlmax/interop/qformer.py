"""The Q-Former, as Hugging Face and LAVIS name its tensors: BERT's layers, with a second feed-forward part.

Every second layer attends to the image; those parts lie in a stack of their own with us.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vlmax.interop import bert
from vlmax.interop.family import Json, activation, cannot, field, name_of
from vlmax.interop.table import Absent, Row, linear, norm, under
from vlmax.models.connectors.qformer import QFormer

QUERY_MLP = (
    *linear("query_mlp/up", "intermediate_query.dense", "D F = F D", "F = F"),
    *linear("query_mlp/down", "output_query.dense", "F D = D F", "D = D"),
    *norm("query_mlp_norm", "output_query.LayerNorm"),
)


@dataclasses.dataclass(frozen=True)
class Names:
    """How a layout names the parts.

    Attributes:
      layers: what the names of layers begin with.
      attention: the module of queries, keys and values inside an attention.
      words: what the names of the embeddings begin with; the norm after them has a name of its own.
      embedding_norm: that norm.
      context_norm: the norm on the image's tokens.
      head: what the names of the head that predicts tokens begin with; None: there is none.
    """

    layers: str
    attention: str
    words: str
    embedding_norm: str
    context_norm: str
    head: str | None = None


def rows(config: QFormer, own: str, names: Names) -> tuple[Row, ...]:
    """The table. V is the language model's vocabulary, beside which the Q-Former's is U."""

    def layer(row: Row) -> Row:
        return dataclasses.replace(row, foreign=row.foreign.replace("attention.self.", f"attention.{names.attention}."))

    cross = [row for row in bert.LAYER if row.own.startswith("cross_")]
    plain = [row for row in bert.LAYER if row not in cross]
    layers = (
        *under("transformer/layers/", f"{names.layers}.{{layer}}.", (*map(layer, plain), *QUERY_MLP)),
        *under("transformer/cross_layers/", f"{names.layers}.{{layer}}.", map(layer, cross)),
    )
    head = () if names.head is None else head_rows(names.head)
    found = (
        Row("query_tokens", "query_tokens", "Q D = 1 Q D"),
        *norm("context_norm", names.context_norm),
        Row("vocabulary/embedding", f"{names.words}.word_embeddings.weight", "U D = U D"),
        Row("positions/embedding", f"{names.words}.position_embeddings.weight", "T D = T D"),
        *norm("embedding_norm", names.embedding_norm),
        *(dataclasses.replace(row, step=config.cross_every if "cross_layers" in row.own else 1) for row in layers),
        *head,
    )
    return under(own, "", found)


def head_rows(foreign: str) -> tuple[Row, ...]:
    """The head that predicts tokens."""
    return (
        *linear("head_dense", f"{foreign}.transform.dense", "D P = P D", "P = P"),
        *norm("head_norm", f"{foreign}.transform.LayerNorm"),
        Row("output_bias", f"{foreign}.bias", "U = U"),
    )


HEAD = Absent("qformer/(head_dense/.*|head_norm/.*|output_bias)", "the Q-Former's head that predicts tokens")


def read(found: Json, cross_width: int, cross_norm: float, **fields: Any) -> QFormer:
    """Our configuration, of config.json."""
    former = field(found, "qformer_config", {})
    return QFormer(
        width=field(former, "hidden_size", 768),
        depth=field(former, "num_hidden_layers", 12),
        heads=field(former, "num_attention_heads", 12),
        mlp=field(former, "intermediate_size", 3072),
        queries=field(found, "num_query_tokens", 32),
        cross_width=cross_width,
        cross_every=field(former, "cross_attention_frequency", 2),
        cross_norm=cross_norm,
        vocab=field(former, "vocab_size", 30_522),
        context=field(former, "max_position_embeddings", 512),
        activation=activation(former, "hidden_act", "gelu"),
        norm_epsilon=field(former, "layer_norm_eps", 1e-12),
        **fields,
    )


def write(config: QFormer, kind: str, family: str) -> dict[str, Any]:
    """`qformer_config`."""
    cannot(config.cross_norm is not None, "a Q-Former without a norm on the image's tokens", family)
    return {
        "model_type": kind,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "hidden_act": name_of(config.activation),
        "layer_norm_eps": config.norm_epsilon,
        "cross_attention_frequency": config.cross_every,
        "encoder_hidden_size": config.cross_width,
    }


def epsilons(config: QFormer, image_epsilon: float) -> list[str]:
    """Says where the norm on the image's tokens has another epsilon than the encoder; a file has one for both.

    The published files have LAVIS's weights, of 1e-5, under 1e-6, too.
    """
    if config.cross_norm in (None, image_epsilon):
        return []
    return [
        f"differs: the norm on the image's tokens has the epsilon {config.cross_norm}, and is written with that of the "
        f"image encoder, {image_epsilon}, for the format has one for both"
    ]
