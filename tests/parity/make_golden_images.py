"""Writes the files of further image encoders in tests/golden from the reference implementation.

python -m tests.parity.make_golden_images        (needs requirements-parity.txt)
"""

from __future__ import annotations

import json

import numpy as np

from tests.parity.make_golden import GOLDEN
from tests.parity.reference_images import run

SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 5}
MLP = {"intermediate_size": 20}
MODELS = {
    "blip_vision": {**SIZES, **MLP, "image_size": 20, "layer_norm_eps": 1e-6},
    "blip_2_vision": {**SIZES, **MLP, "image_size": 23},
    "vit": {**SIZES, **MLP, "image_size": 15},
    "dinov2": {**SIZES, "mlp_ratio": 2, "image_size": 30, "images": (16, 23)},
    "dinov2_with_registers": {
        **SIZES,
        "mlp_ratio": 2,
        "image_size": 25,
        "images": (15, 20),
        "num_register_tokens": 3,
        "use_swiglu_ffn": True,
    },
}
KEPT = ("model_type", "layer_norm_eps", "qkv_bias", "use_swiglu_ffn")


def main() -> None:
    """One file a model: `config` as JSON, `weights/NAME`, `inputs`, `tokens`, `hidden`."""
    for kind, fields in MODELS.items():
        found = run(kind, batch=2, **fields)
        config = {key: found["config"][key] for key in (*fields, *KEPT) if key in found["config"]}
        weights = {f"weights/{name}": value for name, value in found["weights"].items()}
        arrays = {name: found[name] for name in ("inputs", "tokens", "hidden")}
        np.savez_compressed(GOLDEN / f"{kind}.npz", config=np.array(json.dumps(config)), **weights, **arrays)


if __name__ == "__main__":
    main()
