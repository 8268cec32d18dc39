"""Small models of transformers that continue prompts. Needs torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from tests.parity.reference_decoders import CLASSES, randomise
from tests.parity.torch_imports import transformers


def text_decoder(kind: str, seed: int = 0, **fields: Any) -> Any:
    """A decoder with random weights; `kind` as in `reference_decoders`."""
    torch.manual_seed(seed)
    model_class = getattr(transformers(), CLASSES[kind])
    model = model_class(model_class.config_class(**fields, attn_implementation="eager")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            randomise(name, parameter)
            if "wpe" in name or "embed_positions" in name:
                parameter.mul_(4.0)  # else a tied head repeats the token before
    return model


def t5(seed: int = 0, **fields: Any) -> Any:
    """A T5 with random weights."""
    torch.manual_seed(seed)
    model = transformers().T5ForConditionalGeneration(transformers().T5Config(**fields)).eval()
    with torch.no_grad():
        if not model.config.scale_decoder_outputs:  # transformers ties the head unless a checkpoint says otherwise
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
        for name, parameter in model.named_parameters():
            parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
            if "shared" in name or "relative" in name or "norm" in name:
                parameter.mul_(parameter.shape[-1] ** 0.5)
            if "norm" in name:
                parameter.mul_(0.2).add_(1.0)
            if name.endswith(".q.weight"):
                parameter.mul_(model.config.d_kv**-0.5)
    return model


def found_in(model: Any) -> dict[str, Any]:
    """Config and weights."""
    config = {**model.config.to_dict(), "scale_decoder_outputs": getattr(model.config, "scale_decoder_outputs", None)}
    weights = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
    return {"config": config, "weights": weights}


def continued(
    model: Any, prompts: Sequence[Sequence[int]], eos: Sequence[int], embeddings: bool = False, **options: Any
) -> list[list[int]]:
    """The new tokens of every prompt, from one call of generate() on all of them, padded at the left."""
    length = max(map(len, prompts))
    tokens, mask = torch.zeros(2, len(prompts), length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row] = prompt[0]  # transformers' repetition penalty takes padding for a part of the prompt
        tokens[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    seq2seq = model.config.is_encoder_decoder
    if seq2seq:
        options["decoder_start_token_id"] = 0
    inputs = {"inputs_embeds": model.get_input_embeddings()(tokens)} if embeddings else {"input_ids": tokens}
    model.generation_config.eos_token_id = list(eos) or None
    model.generation_config.pad_token_id = 0
    with torch.no_grad():
        out = model.generate(**inputs, attention_mask=mask, **{"do_sample": False, **options})
    start = 1 if seq2seq else 0 if embeddings else length
    return [_cut(row, eos) for row in out[:, start:].tolist()]


def marks_for(texts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Two tokens that, as marks of the end, would end a quarter of these texts or so, each after its first token."""
    counts = Counter(token for text in texts for token in set(text[1:]) - {text[0]})
    return tuple(sorted(counts, key=lambda token: (abs(counts[token] - len(texts) // 4), token))[:2])


def _cut(text: list[int], eos: Sequence[int]) -> list[int]:
    ends = [place for place, token in enumerate(text) if token in eos]
    return text[: ends[0] + 1] if ends else text
