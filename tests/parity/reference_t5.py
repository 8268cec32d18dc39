"""Small T5 models of transformers with random weights: what they give on random texts. Needs torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.parity.torch_imports import transformers


def run(
    seed: int = 0, batch: int = 2, length: int = 11, target_length: int = 7, embeddings: bool = False, **fields: Any
) -> dict[str, Any]:
    """Config, weights, inputs (tokens or embeddings, padded by `segments`) and outputs of a model."""
    torch.manual_seed(seed)
    config = transformers().T5Config(**fields)
    model = transformers().T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        if not config.scale_decoder_outputs:  # transformers ties the head unless a checkpoint says otherwise
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
        for name, parameter in model.named_parameters():
            parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
            if "shared" in name or "relative" in name or "norm" in name:
                parameter.mul_(parameter.shape[-1] ** 0.5)
            if "norm" in name:
                parameter.mul_(0.2).add_(1.0)
            if name.endswith(".q.weight"):
                parameter.mul_(config.d_kv**-0.5)
        inputs = torch.randint(0, config.vocab_size, (batch, length))
        targets = torch.randint(0, config.vocab_size, (batch, target_length))
        segments = (torch.arange(length)[None] < length - 3 * torch.arange(batch)[:, None] % length).int()
        if embeddings:
            inputs = torch.randn(batch, length, config.d_model)
        out = model(
            **{"inputs_embeds" if embeddings else "input_ids": inputs},
            attention_mask=segments,
            decoder_input_ids=targets,
            output_hidden_states=True,
            use_cache=False,
        )
        tokens = out.decoder_hidden_states[-1]

    def stacked(states):  # the first are the embeddings, the last are after the final norm
        between = [state.numpy() for state in states[1:-1]]
        return np.stack(between) if between else np.zeros((0, *states[0].shape))

    return {
        "config": {**config.to_dict(), "scale_decoder_outputs": config.scale_decoder_outputs},
        "weights": {name: value.detach().numpy().copy() for name, value in model.named_parameters()},
        "inputs": inputs.numpy(),
        "targets": targets.numpy(),
        "segments": segments.numpy(),
        "encoded": out.encoder_last_hidden_state.numpy(),
        "encoder_hidden": stacked(out.encoder_hidden_states),
        "tokens": tokens.numpy(),
        "hidden": stacked(out.decoder_hidden_states),
        "logits": out.logits.numpy(),
    }
