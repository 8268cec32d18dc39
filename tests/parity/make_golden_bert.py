"""Writes BERT's files in tests/golden from the reference implementation.

python -m tests.parity.make_golden_bert        (needs requirements-parity.txt)
"""

from __future__ import annotations

import json

import numpy as np

from tests.parity.make_golden import GOLDEN
from tests.parity.reference_bert import run

SIZES = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "vocab_size": 37,
    "max_position_embeddings": 11,
}
MODELS = {
    "bert": {"kind": "bert", **SIZES, "type_vocab_size": 3},
    "bert_causal": {"kind": "bert", **SIZES, "causal": True, "context_length": 5},
    "blip_text": {"kind": "blip_text", **SIZES, "context_length": 7, "encoder_hidden_size": 10},
    "blip_text_causal": {
        "kind": "blip_text",
        **SIZES,
        "context_length": 7,
        "encoder_hidden_size": 10,
        "causal": True,
    },
}
KEPT = (*SIZES, "hidden_act", "layer_norm_eps", "type_vocab_size")


def main() -> None:
    """One file a model: `config` as JSON, `weights/NAME`, and what went in and came out."""
    for name, fields in MODELS.items():
        found = run(**fields, batch=2)
        config = {key: found["config"][key] for key in KEPT if key in found["config"]}
        weights = {f"weights/{name}": value for name, value in found["weights"].items()}
        arrays = {name: value for name, value in found.items() if name not in ("config", "weights")}
        np.savez_compressed(GOLDEN / f"{name}.npz", config=np.array(json.dumps(config)), **weights, **arrays)


if __name__ == "__main__":
    main()
