"""The loop against the slow way: without cache, padding or batch, a whole pass for every token."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from tests.decoding.tiny import MODELS, NEW, PROMPTS, V, greedy, logits_after, parameters
from tests.models.test_transformer import RULES
from vlmax.decoding import loop
from vlmax.decoding.generate import generate
from vlmax.decoding.prompts import Prompt, padded
from vlmax.decoding.readers import reader_of
from vlmax.decoding.sampling import plan_and_knobs
from vlmax.decoding.settings import Generation, Marks
from vlmax.errors import InputError, RunFailed
from vlmax.models.decoders.bert import BERT
from vlmax.models.layers import kernels
from vlmax.models.layers.layer_by_layer import layer_by_layer

GREEDY = Generation(max_new_tokens=NEW)
SEEDS = {"opt": 31, "bert": 51}  # with others all prompts get one text
every = pytest.mark.parametrize("name", MODELS)


@functools.cache
def built(name):
    """The model, its parameters, and the logits the slow way."""
    params = parameters(MODELS[name], SEEDS.get(name, 1))
    return MODELS[name].build(), params, logits_after(MODELS[name], params)


@every
def test_a_batch_is_continued_as_each_prompt_alone_the_slow_way(name):
    model, params, logits = built(name)
    together = generate(model, params, PROMPTS, GREEDY).tokens
    assert together == [greedy(logits, prompt) for prompt in PROMPTS]
    assert len({tuple(text) for text in together}) == len(PROMPTS)
    assert [generate(model, params, [prompt], GREEDY).tokens[0] for prompt in PROMPTS] == together
    assert generate(model, layer_by_layer(params), PROMPTS, GREEDY).tokens == together


@every
def test_texts_end_with_the_marks(name):
    model, params, logits = built(name)
    free = [greedy(logits, prompt) for prompt in PROMPTS]
    marks = (free[0][3], free[2][0])
    found = generate(model, params, PROMPTS, GREEDY, Marks(marks)).tokens
    assert found == [greedy(logits, prompt, eos=marks) for prompt in PROMPTS]
    assert len(found[0]) <= 4 and len(found[2]) == 1
    later = generate(model, params, PROMPTS, Generation(max_new_tokens=NEW, min_new_tokens=6), Marks(marks)).tokens
    assert min(map(len, later)) >= 6 and not any(set(text[:5]) & set(marks) for text in later)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_seen_tokens_are_penalised_with_those_of_the_prompt(name):
    model, params, logits = built(name)

    def penalised(prompt, text):
        found = logits(prompt, text)
        seen = np.isin(np.arange(V), [*([0] if name == "t5" else prompt), *text])
        return np.where(seen, np.where(found < 0, found * 1.7, found / 1.7), found)

    settings = Generation(max_new_tokens=NEW, repetition_penalty=1.7)
    assert generate(model, params, PROMPTS, settings).tokens == [greedy(penalised, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("name", ["llama", "opt", "t5"])
def test_embeddings_are_continued_as_their_tokens(name):
    model, params, _ = built(name)
    expected = generate(model, params, PROMPTS, GREEDY).tokens
    vectors = [np.asarray(model.apply(params, np.array([prompt]), method="embed")[0]) for prompt in PROMPTS]
    assert generate(model, params, vectors, GREEDY).tokens == expected
    width = max(map(len, vectors))
    inputs = jnp.stack([jnp.pad(row, ((width - len(row), 0), (0, 0))) for row in vectors])
    valid = jnp.arange(width)[None] >= width - jnp.array([len(row) for row in vectors])[:, None]
    assert generate(model, params, Prompt(inputs, valid.astype(jnp.int32)), GREEDY).tokens == expected


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_tokens_are_given_as_they_come(name):
    model, params, logits = built(name)
    marks = Marks((greedy(logits, PROMPTS[0])[2],))
    texts: list[list[int]] = [[] for _ in PROMPTS]
    calls = []

    def on_tokens(tokens):
        calls.append(tokens)
        for text, token in zip(texts, tokens, strict=True):
            if token is not None:
                text.append(token)

    found = generate(model, params, PROMPTS, GREEDY, marks, on_tokens=on_tokens).tokens
    assert texts == found == generate(model, params, PROMPTS, GREEDY, marks).tokens
    assert len(calls) == max(map(len, found)) and calls[-1][0] is None


def test_stop_strings_end_a_text():
    model, params, logits = built("llama")
    pieces = [bytes([97 + i % 26]) for i in range(V)]
    free = [greedy(logits, prompt) for prompt in PROMPTS]

    def spelled(text):
        return b"".join(pieces[token] for token in text)

    stop = spelled(free[0][3:5]).decode(), spelled(free[3][:1]).decode()
    found = generate(model, params, PROMPTS, Generation(max_new_tokens=NEW, stop=stop), token_bytes=pieces).tokens
    for text, whole in zip(found, free, strict=True):
        ends = [n for n in range(1, NEW + 1) if any(s.encode() in spelled(whole[:n]) for s in stop)]
        assert text == whole[: min([*ends, NEW])]


def test_draws_stay_among_the_likeliest_and_depend_on_the_seed():
    model, params, logits = built("gpt2")
    settings = Generation(max_new_tokens=NEW, temperature=1.0, top_k=3)
    found = generate(model, params, PROMPTS, settings).tokens
    for prompt, text in zip(PROMPTS, found, strict=True):
        for i, token in enumerate(text):
            assert token in np.argsort(logits(prompt, text[:i]))[-3:]
    again = [generate(model, params, PROMPTS, Generation(NEW, temperature=1.0, top_k=3, seed=seed)) for seed in (0, 1)]
    assert again[0].tokens == found != again[1].tokens
    one = Generation(max_new_tokens=NEW, temperature=0.7, top_k=1)
    assert generate(model, params, PROMPTS, one).tokens == [greedy(logits, prompt) for prompt in PROMPTS]


def test_few_programs_are_compiled():
    model, params, _ = built("llama")
    loop.begin.clear_cache()
    loop.go_on.compiled.clear_cache()
    for length, new in ((1, 3), (16, 3), (9, 17), (17, 2), (24, 9), (20, 9)):
        found = generate(model, params, [PROMPTS[2][:1] * length], Generation(max_new_tokens=new)).tokens
        assert len(found[0]) == new
    assert loop.begin._cache_size() == 3  # prompts of 16 with a cache of 24 or 32, of 24 with one of 32
    assert loop.go_on.compiled._cache_size() == 2  # caches of 24 and 32


@pytest.mark.parametrize("layout", [lambda params: params, layer_by_layer])
def test_the_cache_is_updated_in_place(layout):
    """Temporaries hold a layer of the cache at most a few times, and never all sixteen."""
    config = dataclasses.replace(MODELS["llama"], depth=16)
    params = layout(parameters(config))
    reader, (plan, knobs) = reader_of(config.build(), 0), plan_and_knobs(GREEDY, ())
    texts = loop.begin(reader, plan, 4096, params, padded(PROMPTS, V, 64, 64), knobs, None)
    compiled = loop.go_on.compiled.lower(reader, plan, params, texts, np.int32(5), knobs, None).compile()
    kept = jax.tree.leaves((texts.cache.keys, texts.cache.values))
    memory, size = compiled.memory_analysis(), sum(x.nbytes for x in kept)
    assert memory.alias_size_in_bytes >= size and memory.temp_size_in_bytes < size / 4
    loop.go_on(reader, plan, params, texts, np.int32(5), knobs, None)
    assert all(x.is_deleted() for x in kept)


@pytest.mark.parametrize(("name", "first", "later"), [("llama", {128}, {192}), ("t5", {128, 1}, {128, 192})])
def test_prompts_are_read_without_the_cache_s_empty_slots(name, first, later, monkeypatch):
    """So that a kernel may read them, which knows nothing of caches."""
    config = dataclasses.replace(MODELS[name], context=256)
    params, reader = parameters(config), reader_of(config.build(), 0)
    seen = []

    def note(q, k, v, mask, bias):
        seen.append((k.shape[1], kernels._fits_splash(q, k, mask, bias)))

    monkeypatch.setattr(kernels, "fused", note)
    prompt = padded([[1] * 128, [2] * 100], V, 256, 256)
    _, cache = jax.eval_shape(functools.partial(reader.start, slots=192), params, prompt)
    assert {length for length, _ in seen} == first
    assert name == "t5" or all(fits for _, fits in seen)
    seen.clear()
    jax.eval_shape(reader.step, params, np.zeros(2, np.int32), cache)
    assert {length for length, _ in seen} == later


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_mesh_gives_the_same_texts(name, beams):
    model, params, _ = built(name)
    settings = Generation(max_new_tokens=NEW, beams=beams)
    expected = generate(model, params, PROMPTS, settings).tokens
    mesh = jax.make_mesh((2, 2, 2, 1), ("data", "fsdp", "tensor", "sequence"), axis_types=(AxisType.Auto,) * 4)
    tokens = np.zeros((1, 4), np.int32)
    boxes = jax.eval_shape(model.init, jax.random.key(0), *([tokens] * (2 if name == "t5" else 1)))
    layout = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxes), mesh, RULES)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        there = jax.device_put(params, layout)
        assert generate(model, there, PROMPTS, settings).tokens == expected


def test_bfloat16_runs_and_caches_in_bfloat16():
    _, params, _ = built("llama")
    model = MODELS["llama"].build(jnp.bfloat16)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    together = generate(model, low, PROMPTS, GREEDY).tokens
    assert [generate(model, low, [prompt], GREEDY).tokens[0] for prompt in PROMPTS] == together
    start = functools.partial(reader_of(model, 0).start, slots=24)
    _, cache = jax.eval_shape(start, low, padded(PROMPTS, V, 64, 64))
    assert cache.keys.dtype == cache.values.dtype == jnp.bfloat16


@pytest.mark.parametrize("beams", [1, 2])
def test_logits_that_are_no_number_are_not_taken_for_tokens(beams):
    model, params, _ = built("opt")
    broken = jax.tree.map(lambda x: x, params)
    broken["params"]["final_norm"] = {**params["params"]["final_norm"], "bias": np.full(24, np.nan, np.float32)}
    with pytest.raises(RunFailed, match="NaN"):
        generate(model, broken, PROMPTS, Generation(max_new_tokens=3, beams=beams))


@pytest.mark.parametrize(
    ("name", "prompts", "settings", "marks", "message"),
    [
        ("llama", [[1] * 57], GREEDY, Marks(), "has 57 tokens, and the model has room for 56"),
        ("t5", [[1] * 65], GREEDY, Marks(), "has 65 tokens, and the model has room for 64"),
        ("opt", Prompt(np.ones((1, 57), np.int32), np.ones((1, 57), np.int32)), GREEDY, Marks(), "57 tokens long"),
        ("llama", [[1]], GREEDY, Marks(eos=(V,)), "mark 40 is outside the vocabulary"),
        ("llama", [[1]], Generation(stop=("a",)), Marks(), "token_bytes"),
        ("llama", [[1]], Generation(beams=21), Marks(), "use fewer beams"),
    ],
)
def test_what_cannot_be_done_is_refused(name, prompts, settings, marks, message):
    with pytest.raises(InputError, match=message):
        generate(built(name)[0], built(name)[1], prompts, settings, marks)


def test_the_longest_prompt_that_fits_is_continued():
    model, params, _ = built("opt")
    prompt = np.random.default_rng(3).integers(0, V, 64 - NEW + 1).tolist()
    found = generate(model, params, [prompt], GREEDY).tokens[0]
    text = model.apply(params, np.array([[*prompt, *found[:-1]]]))
    expected = np.argmax(model.apply(params, text.tokens, method="logits")[0], axis=-1)
    assert found == expected[-NEW:].tolist()


def test_beams_cannot_be_streamed_and_other_models_continue_nothing():
    model, params, _ = built("llama")
    with pytest.raises(InputError, match="set beams to 1"):
        generate(model, params, PROMPTS, Generation(beams=2), on_tokens=print)
    with pytest.raises(InputError, match="one entry for each token"):
        generate(model, params, PROMPTS, Generation(stop=("a",)), token_bytes=[b""])
    with pytest.raises(InputError, match="causal=True"):
        generate(BERT(width=8, depth=1, heads=2, mlp=8, vocab=20, context=16).build(), {}, PROMPTS)
    with pytest.raises(InputError, match="cross_width=None"):
        generate(BERT(width=8, depth=1, heads=2, mlp=8, causal=True, cross_width=4).build(), {}, PROMPTS)
    with pytest.raises(InputError, match="no language model"):
        generate(nn.Dense(3), {}, PROMPTS)
