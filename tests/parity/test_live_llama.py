"""Our LLaMA, Mistral and Qwen2 beside transformers', with random weights and several shapes each."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.parity.decoders import assert_same
from tests.parity.make_golden_decoders import LLAMA, LLAMA3, MODELS
from tests.parity.reference_decoders import run

PLAIN = {**LLAMA, "num_key_value_heads": 4}
SHAPES = {
    "golden llama": MODELS["llama"],
    "golden mistral": MODELS["mistral"],
    "golden qwen2": MODELS["qwen2"],
    "as LLaMA 1": ("llama", {**PLAIN, "rms_norm_eps": 1e-6}),
    "one key head, tied": ("llama", {**LLAMA, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "one layer, one head": (
        "llama",
        {**PLAIN, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1},
    ),
    "deep, wide heads": ("llama", {**LLAMA, "num_hidden_layers": 5, "head_dim": 16, "intermediate_size": 77}),
    "linear scaling": (
        "llama",
        {**PLAIN, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "llama3 scaling, long": (
        "llama",
        {**LLAMA, "rope_parameters": {**LLAMA3, "factor": 32.0}, "head_dim": 16, "length": 200},
    ),
    "mistral, long": ("mistral", {**LLAMA, "sliding_window": 7, "length": 40}),
    "mistral, no window": ("mistral", {**LLAMA, "sliding_window": None, "head_dim": 6}),
    "mistral, window of one": ("mistral", {**LLAMA, "sliding_window": 1}),
    "qwen2, tied": ("qwen2", {**LLAMA, "tie_word_embeddings": True}),
    "qwen2, theta": ("qwen2", {**PLAIN, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_hidden_states(shape):
    kind, fields = SHAPES[shape]
    if "length" in fields:
        fields = {**fields, "max_position_embeddings": fields["length"]}
    assert_same(run(kind, seed=3, **fields))
