"""Tables with more rows than the vocabulary has tokens."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.decoders.test_decoder import TOKENS, B, T, built, every, logits_of, random_params
from vlmax.models.decoders.vocabulary import rows


@pytest.mark.parametrize(("vocab", "multiple", "expected"), [(30, 1, 30), (30, 15, 30), (30, 16, 32), (1, 128, 128)])
def test_rows_are_a_multiple(vocab, multiple, expected):
    assert rows(vocab, multiple) == expected


@every
def test_a_padded_vocabulary_changes_no_logit(name):
    run, params, config = built(name)
    padded_config = dataclasses.replace(config, vocab_multiple=16)
    padded = random_params(padded_config, seed=2)
    tables = params["params"]["vocabulary"]
    for key, table in padded["params"]["vocabulary"].items():
        where = (slice(30),) if key == "embedding" else (slice(None), slice(30))
        assert sorted(table.shape) == sorted((32, config.embed_width))
        table[where] = tables[key]
    padded["params"] |= {key: value for key, value in params["params"].items() if key != "vocabulary"}
    logits = logits_of(padded_config)(padded, TOKENS)[0]
    assert logits.dtype == jnp.float32 and logits.shape == (B, T, 30)
    np.testing.assert_allclose(logits, run(params, TOKENS)[0], atol=1e-6)
    head = padded_config.build().apply(padded, method="head")
    assert head.shape == (config.embed_width, 32)
