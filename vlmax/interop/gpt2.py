"""GPT-2, as Hugging Face stores it: matrices [inputs, outputs], queries, keys and values in one."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlmax.interop.family import Family, Json, field, only
from vlmax.interop.table import LeftOut, Row, linear, norm, under
from vlmax.models.decoders.gpt2 import GPT2

# D width, H heads, K head width, F feed-forward width, T positions, V vocabulary.
LAYER = (
    *norm("attention_norm", "ln_1"),
    *linear("attention/query", "attn.c_attn", "D H K = D (3 H K)", "H K = (3 H K)", part=0),
    *linear("attention/key", "attn.c_attn", "D H K = D (3 H K)", "H K = (3 H K)", part=1),
    *linear("attention/value", "attn.c_attn", "D H K = D (3 H K)", "H K = (3 H K)", part=2),
    *linear("attention/out", "attn.c_proj", "H K D = (H K) D", "D = D"),
    *norm("mlp_norm", "ln_2"),
    *linear("mlp/up", "mlp.c_fc", "D F = D F", "F = F"),
    *linear("mlp/down", "mlp.c_proj", "F D = F D", "D = D"),
)
ROWS = (
    Row("vocabulary/embedding", "transformer.wte.weight", "V D = V D"),
    Row("positions/embedding", "transformer.wpe.weight", "T D = T D"),
    *under("transformer/layers/", "transformer.h.{layer}.", LAYER),
    *norm("final_norm", "transformer.ln_f"),
)


def read(found: Json) -> GPT2:
    """Our configuration."""
    only(found, "activation_function", ("gelu_new", "gelu_pytorch_tanh"), "gelu_new")
    only(found, "scale_attn_weights", (True,), True)
    only(found, "scale_attn_by_inverse_layer_idx", (False,), False)
    only(found, "add_cross_attention", (False,), False)
    only(found, "tie_word_embeddings", (True,), True)
    width = field(found, "n_embd", 768)
    return GPT2(
        width=width,
        depth=field(found, "n_layer", 12),
        heads=field(found, "n_head", 12),
        mlp=field(found, "n_inner", 4 * width),
        vocab=field(found, "vocab_size", 50_257),
        context=field(found, "n_positions", 1024),
        norm_epsilon=field(found, "layer_norm_epsilon", 1e-5),
    )


def write(config: GPT2) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": config.heads,
        "n_inner": config.mlp,
        "vocab_size": config.vocab,
        "n_positions": config.context,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
    }


FAMILY = Family(
    name="gpt2",
    model_types=("gpt2",),
    config=GPT2,
    read=read,
    write=write,
    rows=ROWS,
    sizes=lambda config: {"V": config.vocab},
    arguments=lambda config: {"inputs": np.zeros((1, 1), np.int32)},
    renamed=((r"^(wte|wpe|h|ln_f)\.", r"transformer.\1."),),
    left_out=(LeftOut(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"),),  # the causal mask
    same={"lm_head.weight": "transformer.wte.weight"},
)
