"""Writes tests/golden/generate.npz: what the reference makes of prompts with the weights of other golden files.

python -m tests.parity.make_golden_generate        (needs requirements-parity.txt)
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from tests.models import golden
from tests.parity import make_golden_decoders, make_golden_t5, reference_generate
from tests.parity.generation import random_prompts

NEW, LONGEST, V = 8, 8, 37
CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 4},
    "early": {"num_beams": 3, "early_stopping": True},
    "long, never": {"num_beams": 3, "length_penalty": 1.2, "early_stopping": "never"},
}


def reference(name: str) -> Any:
    """The reference's model with the weights of a golden file."""
    if name in make_golden_t5.MODELS:
        model = reference_generate.t5(**make_golden_t5.MODELS[name])
    else:
        kind, fields = make_golden_decoders.MODELS[name]
        model = reference_generate.text_decoder(kind, **fields)
    with torch.no_grad():
        weights = golden.encoder(name)["weights"]
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weights[key]))
    return model


def main() -> None:
    """`MODEL/CASE` as JSON: the new tokens of every prompt; `MODEL/marks`, `prompts` and `cases` beside them."""
    prompts = random_prompts(16, V, LONGEST, seed=1)
    found: dict[str, Any] = {"prompts": prompts, "cases": CASES}
    for name in ("llama", "gpt2", "opt", "t5_first"):
        model = reference(name)
        free = reference_generate.continued(model, prompts, (), max_new_tokens=NEW)
        marks = found[f"{name}/marks"] = reference_generate.marks_for(free)
        for case, options in CASES.items():
            found[f"{name}/{case}"] = reference_generate.continued(model, prompts, marks, max_new_tokens=NEW, **options)
    arrays = {key: np.array(json.dumps(value)) for key, value in found.items()}
    np.savez_compressed(golden.GOLDEN / "generate.npz", **arrays)


if __name__ == "__main__":
    main()
