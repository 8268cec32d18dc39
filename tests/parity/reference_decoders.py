"""Small language models of transformers with random weights: what they give on random, padded texts. Needs torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.parity.torch_imports import transformers

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "opt": "OPTForCausalLM",
}


def run(kind: str, length: int = 12, batch: int = 3, seed: int = 0, **fields: Any) -> dict[str, Any]:
    """Config, weights, tokens, attention mask and outputs of a model; its second text is padded left, its third right.

    `hidden` is the residual stream after every layer, `tokens` what the head reads.
    """
    torch.manual_seed(seed)
    library = transformers()
    model_class = getattr(library, CLASSES[kind])
    config = model_class.config_class(**fields, attn_implementation="eager")
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            randomise(name, parameter)
    hidden: list[torch.Tensor] = []
    base = model.model.decoder if kind == "opt" else model.transformer if kind == "gpt2" else model.model
    for layer in base.h if kind == "gpt2" else base.layers:
        layer.register_forward_hook(lambda _, __, out: hidden.append(out[0] if isinstance(out, tuple) else out))
    tokens = torch.randint(0, config.vocab_size, (batch, length))
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1, : length // 3] = 0
    mask[2, -(length // 4) :] = 0
    # OPT counts its positions from the mask; for the others generate() does.
    positions = {} if kind == "opt" else {"position_ids": (mask.cumsum(1) - 1).clip(0)}
    with torch.no_grad():
        out = model(input_ids=tokens, attention_mask=mask, output_hidden_states=True, use_cache=False, **positions)
    return {
        "config": config.to_dict(),
        "weights": {name: value.detach().numpy().copy() for name, value in model.named_parameters()},
        "inputs": tokens.numpy().astype(np.int32),
        "mask": mask.numpy().astype(np.int32),
        "hidden": np.stack([state.numpy() for state in hidden]),
        "tokens": out.hidden_states[-1].numpy(),
        "logits": out.logits.numpy(),
    }


def randomise(name: str, parameter: torch.Tensor) -> None:
    """Values that keep every layer's output of the order of 1, biases and norms included."""
    if parameter.ndim == 1 or "embed" in name or ".wte" in name or ".wpe" in name:
        parameter.normal_(std=0.5)
    else:
        inputs = parameter.shape[0] if ".h." in name else parameter.shape[1]  # GPT-2's matrices are [inputs, outputs]
        parameter.normal_(std=1.5 * inputs**-0.5)
    if parameter.ndim == 1 and name.endswith("weight"):
        parameter.add_(1.0)
