"""Our T5 beside transformers', with random weights and several shapes."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import torch

from tests.parity.make_golden_t5 import MODELS
from tests.parity.reference_t5 import run
from tests.parity.t5 import assert_same
from tests.parity.torch_imports import transformers
from vlmax.models.layers.distances import distance_buckets

V1_1, FIRST = MODELS["t5"], MODELS["t5_first"]
PUBLISHED = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
SHAPES = {
    "golden": V1_1,
    "first version, tied": FIRST,
    "one layer, one head": {**V1_1, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 1},
    "wide heads, long": {**V1_1, **PUBLISHED, "d_model": 48, "d_kv": 64, "length": 300, "target_length": 150},
    "decoder less deep": {**V1_1, "num_layers": 4, "num_decoder_layers": 2, "d_ff": 333},
    "embeddings in": {**V1_1, "embeddings": True, "batch": 3},
    "gated SiLU": {**V1_1, "feed_forward_proj": "gated-silu"},
    "another epsilon, tied": {**FIRST, "layer_norm_epsilon": 1e-2},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_states_and_logits(shape):
    assert_same(run(seed=3, **SHAPES[shape]))


@pytest.mark.parametrize(("count", "longest"), [(32, 128), (16, 128), (8, 10), (32, 20), (16, 1000), (4, 3)])
def test_distances_fall_into_the_same_buckets(count, longest):
    theirs = transformers().models.t5.modeling_t5.T5Attention._relative_position_bucket(
        -torch.arange(longest + 50), bidirectional=False, num_buckets=count, max_distance=longest
    )
    ours = distance_buckets(count, longest)
    np.testing.assert_array_equal(ours[np.minimum(np.arange(longest + 50), longest)], theirs)
