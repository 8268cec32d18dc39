"""OPT against the reference's golden outputs, its published sizes and where its positions begin."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests.models import golden
from tests.models.decoders.sizes import count
from tests.models.decoders.test_decoder import TOKENS, built
from tests.parity.decoders import assert_same
from vlmax.errors import InputError
from vlmax.models.decoders import opt


@pytest.mark.parametrize("name", ["opt", "opt_350m"])
def test_golden(name):
    assert_same(golden.encoder(name))


PARAMETERS = {
    "opt_125m": 125_239_296,
    "opt_350m": 331_196_416,
    "opt_1_3b": 1_315_758_080,
    "opt_2_7b": 2_651_596_800,
    "opt_6_7b": 6_658_473_984,
    "opt_13b": 12_853_473_280,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_presets_have_the_published_sizes(name):
    assert count(getattr(opt, name)()) == PARAMETERS[name]


def test_the_first_token_stands_at_the_third_row():
    run, params, _ = built("opt")
    before = run(params, TOKENS)[0]
    for row, changed in ((1, 0), (2, 12), (5, 9)):
        other = jax.tree.map(np.copy, params)
        other["params"]["positions"]["embedding"][row] += 1
        after = run(other, TOKENS)[0]
        assert np.any(before != after, axis=(0, 2)).sum() == changed


def test_only_the_350m_has_projections_and_no_final_norm():
    plain, narrow = (set(built(name)[1]["params"]) for name in ("opt", "opt_350m"))
    assert plain ^ narrow == {"final_norm", "project_in", "project_out"} and "final_norm" in plain
    with pytest.raises(InputError, match="token_width"):
        dataclasses.replace(opt.opt_350m(), token_width=0)
