"""Small image encoders of transformers with random weights: what they give on random images. Needs torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.parity.torch_imports import transformers

CLASSES = {
    "blip_vision": "BlipVision",
    "blip_2_vision": "Blip2Vision",
    "instructblip_vision": "InstructBlipVision",
    "vit": "ViT",
    "dinov2": "Dinov2",
    "dinov2_with_registers": "Dinov2WithRegisters",
}


def run(kind: str, batch: int = 3, seed: int = 0, images: tuple[int, int] | None = None, **fields: Any) -> dict:
    """Config, weights, inputs and outputs of a model; `images` of another height and width than its own."""
    torch.manual_seed(seed)
    config = getattr(transformers(), f"{CLASSES[kind]}Config")(**fields)
    options = {"add_pooling_layer": False} if kind == "vit" else {}
    model = getattr(transformers(), f"{CLASSES[kind]}Model")(config, **options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            plain = parameter.ndim < 2 or "embeddings" in name
            parameter.normal_(std=0.5 if plain else 1.5 * parameter[0].numel() ** -0.5)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)
        inputs = torch.randn(batch, 3, *(images or (config.image_size, config.image_size)))
        other = {"interpolate_pos_encoding": True} if images and not kind.startswith("dinov2") else {}
        out = model(pixel_values=inputs, output_hidden_states=True, **other)
    return {
        "config": config.to_dict(),
        "weights": {name: value.detach().numpy().copy() for name, value in model.named_parameters()},
        "inputs": inputs.permute(0, 2, 3, 1).numpy(),
        "tokens": out.last_hidden_state.numpy(),
        "hidden": np.stack([state.numpy() for state in out.hidden_states[1:]]),
    }
