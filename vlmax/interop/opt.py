"""OPT, as Hugging Face stores it; also the 350m with its projections and its norms after each part."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlmax.interop.family import Family, Json, cannot, field, only
from vlmax.interop.table import LeftOut, Row, linear, norm, under
from vlmax.models.decoders.opt import OPT

# D width, E width of the tokens' vectors, H heads, K head width, F feed-forward width, T positions, V vocabulary.
LAYER = (
    *norm("attention_norm", "self_attn_layer_norm"),
    *linear("attention/query", "self_attn.q_proj", "D H K = (H K) D", "H K = (H K)"),
    *linear("attention/key", "self_attn.k_proj", "D H K = (H K) D", "H K = (H K)"),
    *linear("attention/value", "self_attn.v_proj", "D H K = (H K) D", "H K = (H K)"),
    *linear("attention/out", "self_attn.out_proj", "H K D = D (H K)", "D = D"),
    *norm("mlp_norm", "final_layer_norm"),
    *linear("mlp/up", "fc1", "D F = F D", "F = F"),
    *linear("mlp/down", "fc2", "F D = D F", "D = D"),
)
ROWS = under(
    "",
    "model.decoder.",
    (
        Row("vocabulary/embedding", "embed_tokens.weight", "V E = V E"),
        Row("positions/embedding", "embed_positions.weight", "T D = T D"),
        *linear("project_in", "project_in", "E D = D E"),
        *under("transformer/layers/", "layers.{layer}.", LAYER),
        *norm("final_norm", "final_layer_norm"),
        *linear("project_out", "project_out", "D E = E D"),
    ),
)


def read(found: Json) -> OPT:
    """Our configuration."""
    only(found, "activation_function", ("relu",), "relu")
    only(found, "enable_bias", (True,), True)
    only(found, "layer_norm_elementwise_affine", (True,), True)
    only(found, "tie_word_embeddings", (True,), True)
    before = field(found, "do_layer_norm_before", True)
    only(found, "_remove_final_layer_norm", (False,) if before else (False, True), False)
    width = field(found, "hidden_size")
    token_width = field(found, "word_embed_proj_dim", width)
    return OPT(
        width=width,
        depth=field(found, "num_hidden_layers"),
        heads=field(found, "num_attention_heads"),
        mlp=field(found, "ffn_dim"),
        vocab=field(found, "vocab_size", 50_272),
        context=field(found, "max_position_embeddings", 2048),
        token_width=None if token_width == width else token_width,
        post_norm=not before,
    )


def write(config: OPT) -> dict[str, Any]:
    """config.json."""
    cannot(config.norm_epsilon == 1e-5, f"a norm_epsilon of {config.norm_epsilon}, as it has 1e-5 for good", "opt")
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "ffn_dim": config.mlp,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "word_embed_proj_dim": config.embed_width,
        "do_layer_norm_before": not config.post_norm,
        "_remove_final_layer_norm": False,
        "activation_function": "relu",
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
    }


FAMILY = Family(
    name="opt",
    model_types=("opt",),
    config=OPT,
    read=read,
    write=write,
    rows=ROWS,
    sizes=lambda config: {"V": config.vocab},
    arguments=lambda config: {"inputs": np.zeros((1, 1), np.int32)},
    renamed=((r"^decoder\.", "model.decoder."),),
    left_out=(LeftOut(r"model\.decoder\.version"),),  # of the files that OPT was published in first
    same={"lm_head.weight": "model.decoder.embed_tokens.weight"},
)
