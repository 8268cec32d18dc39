"""BLIP's fine-tunings: what is learned, what is not, and that microbatches and prompts are read as they should be."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests import tiny, tiny_blip
from tests.tiny_blip import BEGIN, DECODE, ENCODE, LENGTH, PAD, SYSTEMS
from tests.training.test_step import EIGHT, ONE, on_devices
from vlmax.data.captions import PromptedCaption
from vlmax.data.example import BadRecord, Example
from vlmax.data.images import ImageTransform, Squash
from vlmax.data.sources.shapes import Shapes
from vlmax.data.tokenizers import TrainedBpe, WithTokens
from vlmax.errors import InputError
from vlmax.sharding.rules import unboxed
from vlmax.systems.system import Additive
from vlmax.training.step import train_step

BATCH = 16


def made(name, rows=4):
    """System, random parameters with nothing at its neutral value, carried state, a batch."""
    system, batch = SYSTEMS[name], tiny_blip.batch(name, rows)
    params, carried = map(unboxed, jax.eval_shape(system.init, jax.random.key(0), batch))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: (0.3 * rng.standard_normal(x.shape)).astype(np.float32), params)
    return system, params, carried, batch


@pytest.mark.parametrize("name", ["caption", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vqa", "nlvr2"))])
def test_microbatches_on_eight_devices_have_the_gradients_of_the_whole_batch_on_one(name):
    assert isinstance(SYSTEMS[name], Additive)
    experiment = tiny_blip.experiment(name, microbatches=2)

    def work(run):
        experiment = run.experiment
        batch = jax.device_put(tiny_blip.batch(name, BATCH), run.batch_sharding)
        losses = []
        for microbatches in (1, experiment.microbatches):
            optimizer = run.optimizer
            step = train_step(experiment.system, optimizer.transformation, optimizer.schedule, seed=0,
                              microbatches=microbatches)  # fmt: skip
            state = run.init()
            for _ in range(3):
                state, metrics = jax.jit(step)(state, batch)
                losses.append(float(metrics["loss"]))
        return losses, tiny.copied(state.trainable)

    (one, params), (eight, others) = (on_devices(experiment, mesh, work) for mesh in (ONE, EIGHT))
    np.testing.assert_allclose(one[:3], one[3:], rtol=1e-5)
    np.testing.assert_allclose(one, eight, rtol=1e-5)
    assert one[2] < one[0]
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


# Captions.


def test_a_prompt_is_read_and_not_learned():
    system, params, carried, batch = made("caption")
    run = jax.jit(lambda batch: system.loss(params, carried, batch, jax.random.key(0)))
    loss, (metrics, _) = run(batch)
    learned = batch["labels"] != -100
    assert int(metrics["tokens"]) == learned.sum()
    other = {**batch, "text": np.where(np.arange(LENGTH) == 1, (batch["text"] + 1) % PAD, batch["text"])}
    assert float(run(other)[0]) != pytest.approx(float(loss))  # it is read
    fewer = {**batch, "labels": np.where(np.arange(LENGTH) < 2, -100, batch["labels"])}
    assert int(run(fewer)[1][0]["tokens"]) == (fewer["labels"] != -100).sum() < learned.sum()


def test_the_first_token_of_a_text_is_the_decoders_mark():
    system, params, carried, batch = made("caption")
    other = {**batch, "text": np.where(batch["text"] == BEGIN, 3, batch["text"])}
    one, two = (system.loss(params, carried, x, jax.random.key(0))[0] for x in (batch, other))
    assert float(one) == float(two)


def test_what_is_written_goes_on_from_the_prompt():
    system, params, carried, batch = made("caption")
    prompt = np.array([[0, DECODE, 5]] * 4, np.int32)
    valid = np.array([[0, 1, 1]] * 4, np.int32)
    given = system.prompted(params, carried, {"image": batch["image"], "prompt": prompt, "prompt_valid": valid})
    assert given.context.shape == (4, system.model.image.tokens, system.model.image.width)
    np.testing.assert_array_equal(given.inputs, prompt)
    module, weights = system.decoder_module(), system.decoder_params(params)
    assert module == system.decoder_module()
    out = module.apply(weights, given.inputs, segments=given.valid, context=given.context)
    alone = module.apply(weights, prompt[:, 1:], context=given.context)
    np.testing.assert_allclose(out.tokens[:, 1:], alone.tokens, atol=1e-5)


# Questions.


def test_answers_count_by_their_weights_and_places_without_one_do_not():
    system, params, carried, batch = made("vqa")

    @jax.jit
    def loss(batch):
        return system.loss(params, carried, batch, jax.random.key(0))[0]

    def only(row, place):
        weights = np.zeros_like(batch["answer_weights"])
        weights[row, place] = 1
        return float(loss({**batch, "answer_weights": weights}))

    given = batch["answer_weights"]
    expected = sum(given[row, place] * only(row, place) for row in range(4) for place in range(3))
    assert float(loss(batch)) == pytest.approx(expected, rel=1e-5)
    other = {**batch, "answers": batch["answers"].copy()}
    other["answers"][:, 2] = batch["answers"][::-1, 0]
    assert float(loss(other)) == float(loss(batch))  # their weight is 0


def test_a_question_padded_at_the_left_is_read_as_in_training():
    system, params, carried, batch = made("vqa")
    question = batch["question"]
    tokens = system.model.see(params["image"], carried, batch["image"])[0].tokens
    states = system._states(params, question, tokens)
    lengths = (question != PAD).sum(axis=1)
    prompt, valid = np.zeros((4, LENGTH + 2), np.int32), np.zeros((4, LENGTH + 2), np.int32)
    for row, length in enumerate(lengths):
        prompt[row, -length:], valid[row, -length:] = [ENCODE, *question[row, 1:length]], 1
    given = system.prompted(params, carried, {"image": batch["image"], "prompt": prompt, "prompt_valid": valid})
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(given.context[row, -length:], states[row, :length], atol=1e-5)
    np.testing.assert_array_equal(given.inputs, [[DECODE]] * 4)
    np.testing.assert_array_equal(given.context_valid, valid)


# Two images.


def test_the_upper_layers_merge_by_what_they_learned_and_the_lower_ones_by_the_mean():
    system, params, carried, batch = made("nlvr2")
    assert params["text"]["merge_kernel"].shape == (1, 32, 16)  # one of two layers

    def judged(params, batch):
        return system._judge(params, carried, batch, None)[0]

    swapped = {**batch, "image": batch["second_image"], "second_image": batch["image"]}
    layers = dict(params["text"]["layers"])
    assert not np.allclose(judged(params, batch), judged(params, swapped))
    layers["cross_attention_1"] = layers["cross_attention_0"]
    half = np.concatenate([0.5 * np.eye(16)] * 2)[None].astype(np.float32)
    mean = {**params, "text": {**params["text"], "layers": layers, "merge_kernel": half}}
    mean["text"]["merge_bias"] = np.zeros_like(params["text"]["merge_bias"])
    np.testing.assert_allclose(judged(mean, batch), judged(mean, swapped), atol=1e-5)
    # With one image twice it is the encoder of pretraining.
    twice = {**batch, "second_image": batch["image"]}
    encoder = {name: params["text"][name] for name in ("vocabulary", "positions", "embedding_norm")}
    kept = {n: x for n, x in layers.items() if not n.startswith("cross_attention_1")}
    kept["cross_attention"] = kept.pop("cross_attention_0")
    encoder["transformer"] = {"layers": kept}
    tokens = system.model.see(params["image"], carried, batch["image"])[0].tokens
    text = np.where(np.arange(LENGTH) == 0, ENCODE, batch["text"])
    states = system.model.ground(encoder, text, tokens)
    options = {"segments": system.model.segments(text)}
    two = system._encoder().apply({"params": mean["text"]}, text, [tokens, tokens], **options)
    np.testing.assert_allclose(two, states, atol=1e-4)
    assert judged(mean, twice).shape == (4, 2)
    np.testing.assert_array_equal(system.says_true(params, carried, batch), np.diff(judged(params, batch))[:, 0] > 0)


def test_dropout_and_recomputation_do_what_they_say():
    text = dataclasses.replace(tiny_blip.TEXT, dropout=0.2, remat="full")
    system = dataclasses.replace(SYSTEMS["nlvr2"], model=tiny_blip.model(text=text))
    batch = tiny_blip.batch("nlvr2", 4)
    params, carried = map(unboxed, jax.jit(system.init)(jax.random.key(0), batch))
    losses = [float(system.loss(params, carried, batch, jax.random.key(k))[0]) for k in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


# Features of a captioner.


TOKENIZER = WithTokens(TrainedBpe(Shapes(size=32), vocab_size=300, examples=200))


def test_a_prompt_before_every_caption():
    make = PromptedCaption(ImageTransform(Squash(32)), TOKENIZER, length=24)
    example = Shapes(size=32).open()[3]
    found = make(example, np.random.default_rng(0))
    tokenizer = make.opened
    prompt = tokenizer.encode("a picture of ")
    text, labels = found["text"].tolist(), found["labels"].tolist()
    assert text[: len(prompt) + 1] == [tokenizer.bos, *prompt] and tokenizer.eos in text
    assert labels[: len(prompt)] == [-100] * len(prompt)
    end = text.index(tokenizer.eos)
    assert labels[len(prompt) : end] == text[len(prompt) + 1 : end + 1] and set(labels[end:]) == {-100}
    assert make.detokenize(found["text"][None])[0].startswith("a picture of ")
    assert {name: (x.shape, x.dtype) for name, x in found.items() if "/" not in name} == {
        name: (feature.shape, np.dtype(feature.dtype)) for name, feature in make.features().items()
    }
    with pytest.raises(BadRecord, match="no caption"):
        make(Example("a", example.image), np.random.default_rng(0))
    with pytest.raises(InputError, match=r"length is 4; the prompt 'a picture of ' with its marks"):
        dataclasses.replace(make, length=4).features()


def test_added_tokens_stand_for_themselves():
    tokenizer = TOKENIZER.open()
    assert tokenizer.vocab_size == 302
    assert tokenizer.encode("[DEC]") == [300] and tokenizer.encode("[ENC]") == [301]
    assert tokenizer.decode([300, *tokenizer.encode("a red circle"), tokenizer.eos]) == "a red circle"
    plain = TOKENIZER.tokenizer.open()
    assert plain.encode("two stars") == tokenizer.encode("two stars")
