"""Our encoders beside transformers' CLIP and SigLIP, with random weights and several shapes each."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.parity.huggingface import assert_same
from tests.parity.make_golden import MODELS
from tests.parity.reference import run

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 12}
LARGE = {"hidden_size": 160, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 333}
SHAPES = {
    "golden": {},
    "one layer, one head": SMALL,
    "deep": LARGE,
    "one patch or a short text": {**LARGE, "image_size": 16, "patch_size": 16, "max_position_embeddings": 3},
    "many patches or a long text": {**SMALL, "image_size": 70, "patch_size": 4, "max_position_embeddings": 77},
    "exact GELU": {"hidden_act": "gelu"},
    "another epsilon": {"layer_norm_eps": 1e-3},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", MODELS)
def test_outputs_and_hidden_states(kind, shape):
    fields = {**MODELS[kind], **SHAPES[shape]}
    unused = ("max_position_embeddings",) if "vision" in kind else ("image_size", "patch_size")
    assert_same(run(kind, seed=3, **{key: value for key, value in fields.items() if key not in unused}))
