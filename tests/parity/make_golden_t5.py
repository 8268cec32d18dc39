"""Writes T5's files in tests/golden from the reference implementation.

python -m tests.parity.make_golden_t5        (needs requirements-parity.txt)
"""

from __future__ import annotations

import json

import numpy as np

from tests.parity.make_golden import GOLDEN
from tests.parity.reference_t5 import run

SIZES = {"d_model": 12, "d_kv": 5, "d_ff": 20, "num_heads": 3, "num_layers": 2, "vocab_size": 37}
BUCKETS = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 10}
MODELS = {
    "t5": {
        **SIZES,
        **BUCKETS,
        "num_decoder_layers": 3,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    "t5_first": {**SIZES, **BUCKETS, "feed_forward_proj": "relu"},
}
KEPT = (*SIZES, *BUCKETS, "num_decoder_layers", "feed_forward_proj", "layer_norm_epsilon", "scale_decoder_outputs")


def main() -> None:
    """One file a model: `config` as JSON, `weights/NAME`, and what went in and came out."""
    for kind, fields in MODELS.items():
        found = run(length=13, **fields)
        config = {key: found["config"][key] for key in KEPT}
        weights = {f"weights/{name}": value for name, value in found["weights"].items()}
        arrays = {name: value for name, value in found.items() if name not in ("config", "weights")}
        np.savez_compressed(GOLDEN / f"{kind}.npz", config=np.array(json.dumps(config)), **weights, **arrays)


if __name__ == "__main__":
    main()
