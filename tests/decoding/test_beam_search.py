"""Beam search against its algorithm written with lists: one prompt, no cache, a whole pass for every token."""

from __future__ import annotations

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.decoding.tiny import MODELS, NEW, PROMPTS, V, greedy, logits_after, parameters
from tests.models.test_transformer import RULES
from vlmax.decoding import beam_search
from vlmax.decoding.generate import generate
from vlmax.decoding.settings import Generation, Marks
from vlmax.models.layers.cache import Cache
from vlmax.models.layers.layer_by_layer import layer_by_layer

EOS = (3, 11, 30)


@functools.cache
def built(name):
    """The model, its parameters, and the log-probabilities the slow way."""
    params = parameters(MODELS[name])
    logits = logits_after(MODELS[name], params)
    cached = functools.cache(lambda prompt, text: np.asarray(jax.nn.log_softmax(logits(prompt, text))))
    return MODELS[name].build(), params, lambda prompt, text: cached(tuple(prompt), tuple(text))


def slowly(log_probabilities, prompt, settings, eos=()):
    """The best text of a prompt and its score."""
    beams, new, early, power = (
        settings.beams,
        settings.max_new_tokens,
        settings.early_stopping,
        settings.length_penalty,
    )
    running, finished = [(0.0, [])], []
    for count in range(1, new + 1):
        found = []
        for score, text in running:
            scores = log_probabilities(prompt, text)
            found += [
                (score + float(scores[token]), [*text, token])
                for token in range(V)
                if not (token in eos and count <= settings.min_new_tokens)
            ]
        found = sorted(found, reverse=True)[: beams * max(2, 1 + len(eos))]
        ends = [text[-1] in eos or count == new for _, text in found]
        full = early is True and len(finished) == beams
        if not full:
            finished += [(s / count**power, text) for (s, text), end in zip(found[:beams], ends, strict=False) if end]
            finished = sorted(finished, reverse=True)[:beams]
        running = [text for text, end in zip(found, ends, strict=True) if not end][:beams]
        if not running:
            break
        length = new if early == "never" and power > 0 else count
        hopeless = len(finished) == beams and running[0][0] / length**power <= finished[-1][0]
        if hopeless or (early is True and len(finished) == beams):
            break
    return finished[0]


SETTINGS = {
    "plain": {"beams": 4},
    "two beams": {"beams": 2},
    "early": {"beams": 4, "early_stopping": True},
    "never": {"beams": 3, "early_stopping": "never"},
    "long": {"beams": 4, "length_penalty": 2.0},
    "long, never": {"beams": 4, "length_penalty": 2.0, "early_stopping": "never"},
    "short": {"beams": 4, "length_penalty": -1.0},
    "short, never": {"beams": 4, "length_penalty": -1.0, "early_stopping": "never"},
    "no penalty, early": {"beams": 3, "length_penalty": 0.0, "early_stopping": True},
    "minimum": {"beams": 4, "min_new_tokens": 5},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_batch_gives_what_each_prompt_gives_the_slow_way(case):
    model, params, scores = built("llama")
    settings = Generation(max_new_tokens=NEW, **SETTINGS[case])
    found = generate(model, params, PROMPTS, settings, Marks(EOS))
    for prompt, text, score in zip(PROMPTS, found.tokens, found.scores, strict=True):
        expected = slowly(scores, prompt, settings, EOS)
        assert text == expected[1]
        assert abs(score - expected[0]) < 1e-4
    alone = [generate(model, params, [prompt], settings, Marks(EOS)).tokens[0] for prompt in PROMPTS]
    assert alone == found.tokens


@pytest.mark.parametrize("name", MODELS)
def test_every_model(name):
    model, params, scores = built(name)
    settings = Generation(max_new_tokens=NEW, beams=3)
    expected = [slowly(scores, prompt, settings, EOS)[1] for prompt in PROMPTS]
    assert generate(model, params, PROMPTS, settings, Marks(EOS)).tokens == expected
    assert generate(model, layer_by_layer(params), PROMPTS, settings, Marks(EOS)).tokens == expected


def test_the_cases_are_different():
    model, params, _ = built("llama")
    lengths = {}
    for case, fields in SETTINGS.items():
        found = generate(model, params, PROMPTS, Generation(max_new_tokens=NEW, **fields), Marks(EOS))
        lengths[case] = [len(text) for text in found.tokens]
    assert sum(lengths["short"]) < sum(lengths["plain"]) < sum(lengths["long, never"])
    assert min(lengths["minimum"]) > 5 > min(lengths["plain"])


def test_beams_find_texts_that_are_likelier_than_the_greedy_one():
    model, params, scores = built("gpt2")
    found = generate(model, params, PROMPTS, Generation(max_new_tokens=NEW, beams=6, length_penalty=0.0))
    for prompt, score in zip(PROMPTS, found.scores, strict=True):
        text = greedy(scores, prompt)
        assert score >= sum(scores(prompt, text[:i])[token] for i, token in enumerate(text)) - 1e-4


def test_stop_strings_end_a_running_text():
    model, params, _ = built("llama")
    pieces = [b"z" if i % 4 else b"xy" for i in range(V)]
    settings = Generation(max_new_tokens=NEW, beams=4, length_penalty=0.0, stop=("zx",))
    found = generate(model, params, PROMPTS, settings, token_bytes=pieces).tokens
    for text in found:
        places = [i for i in range(1, len(text)) if pieces[text[i]] == b"xy" and pieces[text[i - 1]] == b"z"]
        assert places == [len(text) - 1] or (not places and len(text) == NEW)
    assert min(map(len, found)) < NEW


def test_the_penalty_on_seen_tokens_is_that_of_each_beam():
    model, params, scores = built("llama")

    def penalised(prompt, text):
        found = scores(prompt, text)
        return np.where(np.isin(np.arange(V), [*prompt, *text]), found * 1.5, found)

    settings = Generation(max_new_tokens=NEW, beams=3, repetition_penalty=1.5)
    found = generate(model, params, PROMPTS, settings, Marks(EOS)).tokens
    assert found == [slowly(penalised, prompt, settings, EOS)[1] for prompt in PROMPTS]


def test_the_cache_is_reordered_within_each_prompt_and_device():
    keys = np.random.default_rng(0).standard_normal((2, 4 * 3, 2, 5, 6)).astype(np.float32)
    empty = Cache.empty(2, 4 * 3, 5, 2, 6, jnp.float32)
    parents = np.array([[2, 0, 0], [1, 1, 1], [0, 1, 2], [2, 1, 0]], np.int32)
    mesh = jax.make_mesh((2, 2, 2, 1), ("data", "fsdp", "tensor", "sequence"), axis_types=(AxisType.Auto,) * 4)
    layout = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp"), "tensor"))
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        cache = dataclasses.replace(empty, keys=jax.device_put(keys, layout), values=jax.device_put(-keys, layout))
        program = jax.jit(beam_search.reordered).lower(cache, parents).compile()
        found = program(cache, parents)
    rows = (parents + 3 * np.arange(4)[:, None]).ravel()
    np.testing.assert_array_equal(found.keys, keys[:, rows])
    np.testing.assert_array_equal(found.values, -keys[:, rows])
    assert found.keys.sharding.is_equivalent_to(layout, 5)
    assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", program.as_text())


def test_few_programs_are_compiled():
    model, params, _ = built("llama")
    beam_search.finish_search.compiled.clear_cache()
    for length, new, power in ((1, 3, 1.0), (9, 5, 0.5), (15, 9, 2.0)):
        settings = Generation(max_new_tokens=new, beams=2, length_penalty=power)
        assert len(generate(model, params, [[1] * length], settings).tokens[0]) == new
    assert beam_search.finish_search.compiled._cache_size() == 1
