"""Writes the decoders' files in tests/golden from the reference implementations.

python -m tests.parity.make_golden_decoders        (needs requirements-parity.txt)
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tests.models.golden import GOLDEN
from tests.parity.reference_decoders import run

SIZES = {"vocab_size": 37, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SIZES, "intermediate_size": 20, "num_key_value_heads": 2, "max_position_embeddings": 40}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
OPT = {**SIZES, "ffn_dim": 20, "word_embed_proj_dim": 24, "max_position_embeddings": 16}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**LLAMA, "rope_parameters": LLAMA3, "head_dim": 8, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**LLAMA, "sliding_window": 5}),
    "qwen2": ("qwen2", {**LLAMA, "num_attention_heads": 6, "num_key_value_heads": 3}),
    "gpt2": (
        "gpt2",
        {"vocab_size": 37, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_inner": 20, "n_positions": 16},
    ),
    "opt": ("opt", OPT),
    "opt_350m": ("opt", {**OPT, "word_embed_proj_dim": 10, "do_layer_norm_before": False}),
}
KEPT = ("model_type", "tie_word_embeddings", "rope_parameters", "sliding_window", "head_dim", "rms_norm_eps")
KEPT += ("layer_norm_epsilon", "activation_function", "word_embed_proj_dim", "do_layer_norm_before")


def main() -> None:
    """One file a model: `config` as JSON, `weights/NAME`, `inputs`, `mask`, `hidden`, `tokens`, `logits`."""
    for name, (kind, fields) in MODELS.items():
        found = run(kind, **fields)
        weights = {f"weights/{key}": value for key, value in found["weights"].items()}
        arrays = {key: found[key] for key in ("inputs", "mask", "hidden", "tokens", "logits")}
        config = json.dumps({key: value for key, value in found["config"].items() if key in (*fields, *KEPT)})
        np.savez_compressed(GOLDEN / f"{name}.npz", config=np.array(config), **weights, **arrays)


if __name__ == "__main__":
    main()
