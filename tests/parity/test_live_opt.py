"""Our OPT beside transformers', with random weights and several shapes."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.parity.decoders import assert_same
from tests.parity.make_golden_decoders import MODELS, OPT
from tests.parity.reference_decoders import run

SMALL = {**OPT, "word_embed_proj_dim": OPT["hidden_size"]}
SHAPES = {
    "golden": MODELS["opt"][1],
    "golden 350m": MODELS["opt_350m"][1],
    "one layer, one head": {**SMALL, "num_hidden_layers": 1, "num_attention_heads": 1},
    "deep": {**SMALL, "num_hidden_layers": 5, "hidden_size": 96, "word_embed_proj_dim": 96, "num_attention_heads": 12},
    "post-norm without projections": {**SMALL, "do_layer_norm_before": False},
    "projections with pre-norm": {**SMALL, "word_embed_proj_dim": 32},
    "as long as the context": {**SMALL, "max_position_embeddings": 12},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_hidden_states(shape):
    assert_same(run("opt", seed=3, **SHAPES[shape]))
