"""LLaMA and its kin against the reference's golden outputs, their published sizes, windows and scaled positions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.models import golden
from tests.models.decoders.sizes import count
from tests.models.decoders.test_decoder import TOKENS, built
from tests.parity.decoders import assert_same
from vlmax.errors import InputError
from vlmax.models.decoders import llama
from vlmax.models.decoders.llama import LLaMA


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_golden(name):
    assert_same(golden.encoder(name))


PARAMETERS = {
    "llama_160m": 162_417_408,
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "vicuna_7b": 6_738_415_616,
    "vicuna_7b_16k": 6_738_415_616,
    "vicuna_13b": 13_015_864_320,
    "llama3_8b": 8_030_261_248,
    "llama31_8b": 8_030_261_248,
    "llama32_1b": 1_235_814_400,
    "llama32_3b": 3_212_749_824,
    "mistral_7b": 7_241_732_096,
    "mistral_7b_v2": 7_241_732_096,
    "qwen2_7b": 7_615_616_512,
    "qwen2_0_5b": 494_032_768,
    "qwen2_1_5b": 1_543_714_304,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_presets_have_the_published_sizes(name):
    assert count(getattr(llama, name)()) == PARAMETERS[name]
    assert getattr(llama, name)(depth=1).depth == 1


def test_presets_differ_where_the_models_do():
    assert (llama.llama_7b().context, llama.llama_7b().norm_epsilon) == (2048, 1e-6)
    assert (llama.vicuna_7b().context, llama.vicuna_7b().norm_epsilon) == (4096, 1e-5)
    assert llama.llama31_8b() == dataclasses.replace(
        llama.llama3_8b(), context=131_072, rotary=llama.llama31_8b().rotary
    )
    assert llama.mistral_7b().window == 4096 and llama.mistral_7b_v2().window is None
    assert llama.qwen2_7b().rotary.theta == llama.mistral_7b_v2().rotary.theta == 1e6


def test_a_window_of_three_reaches_four_tokens_back_through_two_layers():
    run, params, _ = built("mistral")
    edited = TOKENS.copy()
    edited[:, 2] = (edited[:, 2] + 1) % 30
    changed = np.any(run(params, TOKENS)[0] != run(params, edited)[0], axis=(0, 2))
    assert changed.nonzero()[0].tolist() == [2, 3, 4, 5, 6]


def test_a_window_sees_at_least_the_token_itself():
    with pytest.raises(InputError, match="window"):
        LLaMA(window=0)
