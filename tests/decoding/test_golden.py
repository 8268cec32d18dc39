"""The tokens that transformers' generate() gave, as tests/parity/make_golden_generate.py wrote them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.models import golden
from tests.parity.generation import model_and_params
from vlmax.decoding.generate import generate
from vlmax.decoding.settings import Generation, Marks

with np.load(golden.GOLDEN / "generate.npz") as file:
    FOUND = {name: json.loads(str(value)) for name, value in file.items()}


@pytest.mark.parametrize("case", FOUND["cases"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "t5_first"])
def test_golden(name, case):
    options = {("beams" if key == "num_beams" else key): value for key, value in FOUND["cases"][case].items()}
    model, params = model_and_params(golden.encoder(name))
    settings, marks = Generation(max_new_tokens=8, **options), Marks(tuple(FOUND[f"{name}/marks"]))
    expected = FOUND[f"{name}/{case}"]
    assert generate(model, params, FOUND["prompts"], settings, marks).tokens == expected
    assert len({len(text) for text in expected}) > 1
