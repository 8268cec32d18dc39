"""The tokens that we generate beside those of transformers' generate(), on 64 random prompts of unequal length."""

from __future__ import annotations

import functools

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.parity import reference_generate
from tests.parity.generation import model_and_params, random_prompts
from vlmax.decoding.generate import generate
from vlmax.decoding.settings import Generation, Marks

V, NEW, LONGEST = 60, 16, 24
SIZES = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODERS = {
    "llama": {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64},
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "gpt2": {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}
T5 = {"vocab_size": V, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2}
T5 |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "relative_attention_num_buckets": 8}
T5 |= {"relative_attention_max_distance": 12}
MODELS = (*DECODERS, "t5")
PROMPTS = random_prompts(64, V, LONGEST)
GREEDY = {
    "greedy": {},
    "minimum": {"min_new_tokens": 9},
    "penalty": {"repetition_penalty": 1.4},
}
BEAMS = {
    "beams": {"beams": 4},
    "early": {"beams": 3, "early_stopping": True},
    "never": {"beams": 3, "early_stopping": "never"},
    "long": {"beams": 5, "length_penalty": 1.2},
    "long, never": {"beams": 4, "length_penalty": 1.2, "early_stopping": "never"},
    "short": {"beams": 4, "length_penalty": -0.7},
    "short, never": {"beams": 4, "length_penalty": -0.7, "early_stopping": "never"},
    "zero, early": {"beams": 2, "length_penalty": 0.0, "early_stopping": True},
    "minimum": {"beams": 4, "min_new_tokens": 9},
    "penalty": {"beams": 4, "repetition_penalty": 1.4},
}


@functools.cache
def both(name):
    """The reference's model, ours, and its parameters."""
    t5 = name == "t5"
    theirs = reference_generate.t5(3, **T5) if t5 else reference_generate.text_decoder(name, 3, **DECODERS[name])
    return theirs, *model_and_params(reference_generate.found_in(theirs))


@functools.cache
def marks(name):
    """The marks of the end."""
    return reference_generate.marks_for(reference_generate.continued(both(name)[0], PROMPTS, (), max_new_tokens=NEW))


def assert_same(name, fields, embeddings=False, ends=True):
    """The same tokens for all 64; the texts are varied, so that it says something."""
    theirs, model, params = both(name)
    eos = marks(name) if ends else ()
    options = {("num_beams" if key == "beams" else key): value for key, value in fields.items()}
    expected = reference_generate.continued(theirs, PROMPTS, eos, embeddings, max_new_tokens=NEW, **options)
    settings = Generation(max_new_tokens=NEW, **fields)
    prompts = PROMPTS
    if embeddings:
        prompts = [np.asarray(model.apply(params, np.array([prompt]), method="embed")[0]) for prompt in PROMPTS]
    found = generate(model, params, prompts, settings, Marks(eos)).tokens
    wrong = [i for i in range(len(PROMPTS)) if found[i] != expected[i]]
    assert not wrong, [(found[i], expected[i]) for i in wrong[:3]]
    assert len({tuple(text) for text in found}) > 32
    lengths = {len(text) for text in found}
    assert len(lengths) > 1 if ends else lengths == {NEW}


@pytest.mark.parametrize("case", GREEDY)
@pytest.mark.parametrize("name", MODELS)
def test_greedy(name, case):
    assert_same(name, GREEDY[case])


@pytest.mark.parametrize("case", BEAMS)
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_beam_search(name, case):
    assert_same(name, BEAMS[case])


@pytest.mark.parametrize("name", ["opt", "gpt2"])
def test_beam_search_of_the_others(name):
    assert_same(name, BEAMS["beams"])


@pytest.mark.parametrize("fields", [{}, {"beams": 4}])
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_without_a_mark_of_the_end(name, fields):
    assert_same(name, fields, ends=False)


@pytest.mark.parametrize("fields", [{}, {"beams": 3}])
def test_embeddings(fields):
    assert_same("llama", fields, embeddings=True)
