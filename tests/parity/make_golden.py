"""Writes the encoders' files in tests/golden from the reference implementations.

python -m tests.parity.make_golden        (needs requirements-parity.txt)
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from tests.parity.reference import run

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
MODELS = {
    # Patches that do not fill the image, of an odd size.
    "clip_vision": {**SIZES, "image_size": 23, "patch_size": 5, "hidden_act": "quick_gelu"},
    "clip_text": {
        **SIZES,
        "vocab_size": 37,
        "max_position_embeddings": 9,
        "hidden_act": "gelu",
        "eos_token_id": 36,
        "bos_token_id": 35,
        "pad_token_id": 0,
    },
    "siglip_vision": {**SIZES, "image_size": 20, "patch_size": 6, "hidden_act": "gelu_pytorch_tanh"},
    "siglip_text": {
        **SIZES,
        "vocab_size": 37,
        "max_position_embeddings": 8,
        "hidden_act": "gelu_pytorch_tanh",
        "projection_size": 20,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "pad_token_id": 1,
    },
}
GRIDS = [((4, 4), (7, 7)), ((7, 7), (4, 4)), ((3, 5), (6, 4)), ((6, 6), (5, 9))]


def models() -> None:
    """One file a model: `config` as JSON, `weights/NAME`, `inputs`, `tokens`, `pooled`, `hidden`."""
    for kind, fields in MODELS.items():
        found = run(kind, **fields)
        weights = {f"weights/{name}": value for name, value in found["weights"].items()}
        arrays = {name: found[name] for name in ("inputs", "tokens", "pooled", "hidden")}
        config = json.dumps({key: found["config"][key] for key in (*fields, "model_type", "layer_norm_eps")})
        np.savez_compressed(GOLDEN / f"{kind}.npz", config=np.array(config), **weights, **arrays)


def positions() -> None:
    """Grids of positions and what torch's antialiased bicubic interpolation makes of them."""
    torch.manual_seed(0)
    arrays = {}
    for i, (old, new) in enumerate(GRIDS):
        table = torch.randn(*old, 6)
        resized = torch.nn.functional.interpolate(
            table.permute(2, 0, 1)[None], size=new, mode="bicubic", antialias=True, align_corners=False
        )
        arrays[f"old{i}"], arrays[f"new{i}"] = table.numpy(), resized[0].permute(1, 2, 0).numpy()
    np.savez_compressed(GOLDEN / "resize_positions.npz", **arrays)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    models()
    positions()
