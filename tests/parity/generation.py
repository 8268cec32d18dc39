"""Our models with the weights of transformers', ready to continue prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from tests.parity import decoders, t5
from tests.parity.huggingface import Recorded


def model_and_params(found: Mapping[str, Any]) -> tuple[nn.Module, Any]:
    """Of a text decoder or a T5."""
    weights = Recorded(found["weights"])
    if found["config"].get("model_type", "t5") == "t5":
        config: Any = t5.config(found["config"])
        params = t5.params(weights, config)
    else:
        config = decoders.config_of(found["config"])
        params = decoders.params_of(weights, config)
    assert not weights.unread()
    return config.build(), params


def random_prompts(count: int, vocab: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Prompts of every length up to the longest."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, rng.integers(1, longest + 1)).tolist() for _ in range(count)]
