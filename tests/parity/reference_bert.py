"""Small BERT and BLIP text models of transformers with random weights: what they give on random texts. Needs torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.parity.torch_imports import transformers


def build(kind: str, causal: bool, cross: bool, fields: dict[str, Any]) -> Any:
    """`bert` or `blip_text`, with a head that predicts tokens and, for a `bert` that is not causal, a pooler."""
    library = transformers()
    if kind == "blip_text":
        return library.BlipTextLMHeadModel(library.BlipTextConfig(**fields))
    config = library.BertConfig(**fields, is_decoder=causal, add_cross_attention=cross)
    return (library.BertLMHeadModel if causal else library.BertForPreTraining)(config)


def run(
    kind: str,
    seed: int = 0,
    batch: int = 3,
    length: int = 9,
    causal: bool = False,
    context_length: int | None = None,
    embeddings: bool = False,
    **fields: Any,
) -> dict[str, Any]:
    """Config, weights, inputs (padded by `segments`) and outputs of a model.

    `context_length` makes it attend to a context, for a BERT with `causal`.
    """
    torch.manual_seed(seed)
    cross = context_length is not None
    model = build(kind, causal, cross, fields).eval()
    config = model.config
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            plain = parameter.ndim < 2 or "embeddings" in name
            parameter.normal_(std=0.5 if plain else 1.5 * parameter.shape[1] ** -0.5)
            if "LayerNorm.weight" in name:
                parameter.add_(1.0)
        inputs = torch.randint(0, config.vocab_size, (batch, length))
        segments = (torch.arange(length)[None] < length - 2 * torch.arange(batch)[:, None] % length).int()
        given: dict[str, Any] = {"attention_mask": segments}
        found: dict[str, Any] = {"segments": segments.numpy()}
        if cross:
            width = config.encoder_hidden_size if kind == "blip_text" else config.hidden_size
            context = torch.randn(batch, context_length, width)
            given["encoder_hidden_states"], found["context"] = context, context.numpy()
            if kind == "bert":  # transformers' BLIP reads a mask of the images and does not use it
                seen = (torch.arange(context_length)[None] < context_length - torch.arange(batch)[:, None]).int()
                given["encoder_attention_mask"], found["context_segments"] = seen, seen.numpy()
        if kind == "blip_text":
            given["is_decoder"] = causal
        else:
            types = torch.randint(0, config.type_vocab_size, (batch, length))
            given["token_type_ids"], found["token_types"] = types, types.numpy()
        if embeddings:
            inputs = torch.randn(batch, length, config.hidden_size)
        name = "inputs_embeds" if embeddings else "input_ids"
        out = model(**{name: inputs.clone()}, **given, output_hidden_states=True)
        if kind == "bert" and not causal:
            found["pooled"] = model.bert(**{name: inputs.clone()}, **given).pooler_output.numpy()
    return {
        **found,
        "config": config.to_dict(),
        "weights": {
            name: value.detach().numpy().copy()
            for name, value in model.named_parameters()
            if "seq_relationship" not in name  # the head that tells whether a sentence follows
        },
        "inputs": inputs.numpy(),
        "causal": np.array(causal),
        "hidden": np.stack([state.numpy() for state in out.hidden_states[1:]]),
        "logits": (out.logits if "logits" in out else out.prediction_logits).numpy(),
    }
