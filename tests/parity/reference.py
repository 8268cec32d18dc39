"""Small transformers models with random weights: what they give on random inputs. Needs torch and transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.parity.torch_imports import transformers


def run(kind: str, batch: int = 3, seed: int = 0, **fields: Any) -> dict[str, Any]:
    """Config, weights, inputs and outputs of a `clip_vision`, `clip_text`, `siglip_vision` or `siglip_text` model."""
    torch.manual_seed(seed)
    family, side = kind.split("_")
    prefix = {"clip": "CLIP", "siglip": "Siglip"}[family] + side.capitalize()
    config = getattr(transformers(), f"{prefix}Config")(**fields)
    model = getattr(transformers(), f"{prefix}Model")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.5 if "embed" in name or "norm" in name else 1.5 * parameter[0].numel() ** -0.5
            parameter.normal_(std=scale)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
        if side == "vision":
            inputs = torch.randn(batch, 3, config.image_size, config.image_size)
            out = model(pixel_values=inputs, output_hidden_states=True)
            inputs = inputs.permute(0, 2, 3, 1)
        else:
            inputs = texts(batch, config)
            out = model(input_ids=inputs, output_hidden_states=True)
    weights = {
        name.removeprefix("vision_model.").removeprefix("text_model."): value.detach().numpy().copy()
        for name, value in model.named_parameters()
    }
    return {
        "config": config.to_dict(),
        "weights": weights,
        "inputs": inputs.numpy(),
        "tokens": out.last_hidden_state.numpy(),
        "pooled": out.pooler_output.numpy(),
        "hidden": np.stack([state.numpy() for state in out.hidden_states[1:]]),
    }


def texts(batch: int, config: Any) -> torch.Tensor:
    """Random tokens; for CLIP each text ends at another place with the highest id and is padded with zeros."""
    length, vocab = config.max_position_embeddings, config.vocab_size
    tokens = torch.randint(0, vocab - 1, (batch, length))
    if config.model_type == "clip_text_model":
        for row in range(batch):
            end = length - 1 - row * 2 % length
            tokens[row, end] = vocab - 1
            tokens[row, end + 1 :] = 0
    return tokens
