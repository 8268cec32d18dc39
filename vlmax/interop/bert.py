"""BERT, as Hugging Face stores it; also causal and attending to a context."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlmax.interop.family import Family, Json, activation, cannot, field, name_of, only
from vlmax.interop.table import LeftOut, Row, linear, norm, under
from vlmax.models.decoders.bert import BERT


# D width, H heads, K head width, F feed-forward width, T positions, V vocabulary, C width of the context.
def attention(own: str, foreign: str, context: str) -> tuple[Row, ...]:
    """One attention and the norm after it; keys and values are of something as wide as the letter `context`."""
    rows = (
        *linear("/query", "self.query", "D H K = (H K) D", "H K = (H K)"),
        *linear("/key", "self.key", f"{context} H K = (H K) {context}", "H K = (H K)"),
        *linear("/value", "self.value", f"{context} H K = (H K) {context}", "H K = (H K)"),
        *linear("/out", "output.dense", "H K D = D (H K)", "D = D"),
        *norm("_norm", "output.LayerNorm"),
    )
    return under(own, f"{foreign}.", rows)


LAYER = (
    *attention("attention", "attention", "D"),
    *attention("cross_attention", "crossattention", "C"),
    *linear("mlp/up", "intermediate.dense", "D F = F D", "F = F"),
    *linear("mlp/down", "output.dense", "F D = D F", "D = D"),
    *norm("mlp_norm", "output.LayerNorm"),
)
ROWS = (
    Row("vocabulary/embedding", "bert.embeddings.word_embeddings.weight", "V D = V D"),
    Row("positions/embedding", "bert.embeddings.position_embeddings.weight", "T D = T D"),
    Row("token_types/embedding", "bert.embeddings.token_type_embeddings.weight", "S D = S D"),
    *norm("embedding_norm", "bert.embeddings.LayerNorm"),
    *under("transformer/layers/", "bert.encoder.layer.{layer}.", LAYER),
    *linear("pooler", "bert.pooler.dense", "D P = P D", "P = P"),
    *linear("head_dense", "cls.predictions.transform.dense", "D P = P D", "P = P"),
    *norm("head_norm", "cls.predictions.transform.LayerNorm"),
    Row("output_bias", "cls.predictions.bias", "V = V"),
)

PREDICTS = ("BertForMaskedLM", "BertLMHeadModel", "BertForPreTraining")


def read(found: Json) -> BERT:
    """Our configuration; the class of the model says which heads it has."""
    only(found, "position_embedding_type", ("absolute",), "absolute")
    only(found, "tie_word_embeddings", (True,), True)
    kind = (found.get("architectures") or ["BertForMaskedLM"])[0]
    only({"architectures": kind}, "architectures", (*PREDICTS, "BertModel"), None)
    cross, width = found.get("add_cross_attention", False), field(found, "hidden_size")
    return BERT(
        width=width,
        depth=field(found, "num_hidden_layers"),
        heads=field(found, "num_attention_heads"),
        mlp=field(found, "intermediate_size"),
        vocab=field(found, "vocab_size"),
        context=field(found, "max_position_embeddings", 512),
        token_types=field(found, "type_vocab_size", 2),
        causal=found.get("is_decoder", False),
        cross_width=field(found, "encoder_width", width) if cross else None,
        predicts=kind in PREDICTS,
        pooler=kind == "BertModel",
        activation=activation(found, "hidden_act", "gelu"),
        norm_epsilon=field(found, "layer_norm_eps", 1e-12),
    )


def write(config: BERT) -> dict[str, Any]:
    """config.json."""
    cannot(config.token_types > 0, "a BERT without token types", "bert")
    cannot(config.predicts != config.pooler, "a BERT with both a pooler and a head that predicts, or neither", "bert")
    cannot(config.cross_width in (None, config.width), f"a context {config.cross_width} wide", "bert")
    cannot(config.cross_width is None or config.causal, "a context for a BERT that is not causal", "bert")
    kind = "BertModel" if config.pooler else "BertLMHeadModel" if config.causal else "BertForMaskedLM"
    return {
        "architectures": [kind],
        "model_type": "bert",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "type_vocab_size": config.token_types,
        "is_decoder": config.causal,
        "add_cross_attention": config.cross_width is not None,
        "hidden_act": name_of(config.activation),
        "layer_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": True,
    }


FAMILY = Family(
    name="bert",
    model_types=("bert",),
    config=BERT,
    read=read,
    write=write,
    rows=ROWS,
    sizes=lambda config: {"V": config.vocab},
    arguments=lambda config: (
        {"inputs": np.zeros((1, 1), np.int32)}
        | ({} if config.cross_width is None else {"context": np.zeros((1, 1, config.cross_width), np.float32)})
    ),
    renamed=(
        (r"\.gamma$", ".weight"),
        (r"\.beta$", ".bias"),
        (r"^(embeddings|encoder|pooler)\.", r"bert.\1."),
    ),
    left_out=(
        LeftOut(r"bert\.embeddings\.position_ids"),
        LeftOut(r"cls\.seq_relationship\..*", "vlmax has no head that tells whether a sentence follows"),
        LeftOut(r"bert\.pooler\..*", "a pooler goes with BertModel, not with a model that predicts tokens"),
        LeftOut(r"cls\.predictions\..*", "a head that predicts tokens does not go with BertModel"),
    ),
    same={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
)
