"""Random models of BLIP's family in transformers beside what `vlmax.load` makes of their folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from tests.parity.interop import no_warnings, same_configuration
from vlmax.decoding.generate import generate
from vlmax.decoding.prompts import Prompt
from vlmax.decoding.settings import Generation, Marks
from vlmax.evaluation.writing import padding_first
from vlmax.interop.converting import convert
from vlmax.models.pixels import OPENAI_MEAN, OPENAI_STD
from vlmax.systems.system import Prompted

VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 24,
    "patch_size": 8,
}
FORMER: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "vocab_size": 41,
    "max_position_embeddings": 30,
}
TOKENS = 64
"""Of the language models; the last stands for the image in transformers."""
LANGUAGE: dict[str, dict[str, Any]] = {
    "opt": {
        "vocab_size": TOKENS,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "max_position_embeddings": 48,
        "word_embed_proj_dim": 32,
        "eos_token_id": 9,
    },
    "t5": {
        "vocab_size": TOKENS,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    },
    "llama": {
        "vocab_size": TOKENS,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 48,
    },
}


TIED = "but both are present"
"""Of what transformers warns of with every T5 v1.1: it sets `tie_word_embeddings`, whatever the file says."""


def untied(model: Any) -> Any:
    """Two tables of the vocabulary where the language model is a T5 v1.1, as all that are published have."""
    if model.config.text_config.model_type == "t5":
        model.language_model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.language_model.shared.weight))
    return model


def pictures(size: int, batch: int = 3) -> tuple[np.ndarray, torch.Tensor]:
    """The same images for us and for transformers."""
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    normal = (pixels / np.float32(255) - np.float32(OPENAI_MEAN)) / np.float32(OPENAI_STD)
    return pixels, torch.from_numpy(normal.astype(np.float32)).permute(0, 3, 1, 2)


def texts(vocab: int, lengths: Sequence[int], seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of several lengths, padded at the right with 0, and where they are."""
    valid = torch.tensor([[int(i < length) for i in range(max(lengths))] for length in lengths])
    tokens = torch.randint(5, vocab, valid.shape, generator=torch.Generator().manual_seed(seed))
    return tokens * valid, valid


def left(tokens: torch.Tensor, valid: torch.Tensor) -> dict[str, np.ndarray]:
    """The same texts, padded at the left, as features."""
    rows = [np.roll(row.numpy(), -int(mask.sum())) for row, mask in zip(tokens, valid, strict=True)]
    masks = [np.roll(mask.numpy(), -int(mask.sum())) for mask in valid]
    return {"prompt": np.stack(rows).astype(np.int32), "prompt_valid": np.stack(masks).astype(np.int32)}


def prompted(system: Any, variables: Mapping[str, Any], batch: Mapping[str, Any]) -> Prompted:
    """What the decoder goes on from, its padding at the left."""
    carried = {name: tree for name, tree in variables.items() if name != "params"}

    @jax.jit
    def run(params):
        found = system.prompted(params, carried, {name: jnp.asarray(x) for name, x in batch.items()})
        return found._replace(**dict(zip(("inputs", "valid"), padding_first(found.inputs, found.valid), strict=True)))

    return run(variables["params"])


def logits(system: Any, variables: Mapping[str, Any], batch: Mapping[str, Any]) -> np.ndarray:
    """Of a decoder at every place of its prompt, 0 where there is padding."""
    found, module = prompted(system, variables, batch), system.decoder_module()
    context = {} if found.context is None else {"context": found.context, "context_segments": found.context_valid}
    places = jnp.maximum(jnp.cumsum(found.valid, axis=1) - 1, 0)

    @jax.jit
    def run(params):
        out = module.apply(params, found.inputs, segments=found.valid, positions=places, **context)
        return module.apply(params, out.tokens, method="logits")

    return np.asarray(run(system.decoder_params(variables["params"]))) * np.asarray(found.valid)[..., None]


def written(
    system: Any, variables: Mapping[str, Any], batch: Mapping[str, Any], end: int, start: int = 0, **settings: Any
) -> list[list[int]]:
    """The new tokens, without the one that ends a text."""
    found = Prompt(*prompted(system, variables, batch))
    params = system.decoder_params(variables["params"])
    rows = generate(system.decoder_module(), params, found, Generation(**settings), Marks((end,), start)).tokens
    return [until(row, end) for row in rows]


def until(row: Sequence[int], end: int) -> list[int]:
    """The tokens before the one that ends a text."""
    return list(row)[: list(row).index(end)] if end in list(row) else list(row)


def close_rows(ours: np.ndarray, theirs: torch.Tensor, valid: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Holds rows that we pad at the left against theirs, padded at the right, each without its padding."""
    reference = theirs.detach().numpy()
    largest = max(np.abs(row[: int(n)]).max() for row, n in zip(reference, valid.sum(1), strict=True))
    for mine, row, count in zip(ours, reference, valid.sum(1).tolist(), strict=True):
        assert np.abs(mine[len(mine) - count :] - row[:count]).max() <= tolerance * largest


def written_anew(model: Any, folder: Path) -> None:
    """Also without the config.json that came along, transformers opens what is written, and finds the same model.

    Args:
      model: of transformers, which `there_and_back` took to the folder.
      folder: with `ours`.
    """
    shutil.copytree(folder / "ours", folder / "bare")
    shutil.rmtree(folder / "bare" / "foreign")
    list(convert(folder / "bare", folder / "anew", "huggingface"))
    with no_warnings():
        again, info = type(model).from_pretrained(folder / "anew", output_loading_info=True)
    assert not any(info.values()), info
    for name, values in model.state_dict().items():
        assert torch.equal(values, again.state_dict()[name]), name
    described = json.loads((folder / "anew" / "config.json").read_text())
    for part, content in described.items():
        if isinstance(content, dict) and part != "text_config":
            known = {name: getattr(getattr(model.config, part), name, None) for name in content}
            same_configuration(content, known)
