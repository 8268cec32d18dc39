"""BLIP-2's first stage: its three losses, what trains, and the same numbers on every mesh."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny, tiny_blip2
from tests.tiny_blip2 import BOS, DECODE, EOS, LENGTH, PAD, STAGE_1, VOCAB
from tests.training.test_step import EIGHT, ONE, on_devices
from vlmax.errors import InputError
from vlmax.objectives.language import dense_next_token_loss
from vlmax.objectives.language_device import IGNORED
from vlmax.objectives.matching import draw_negatives, matching_loss
from vlmax.sharding.mesh import Mesh
from vlmax.sharding.rules import unboxed
from vlmax.systems.blip2 import BLIP2
from vlmax.systems.system import Embeds, Matches, System
from vlmax.training import patterns

BATCH = tiny_blip2.batch(STAGE_1)
GROUP = np.array([0, 0, 1, 2, 3, 4, 5, 5])


@functools.cache
def parameters():
    """Random values everywhere."""
    boxed, _ = jax.eval_shape(STAGE_1.init, jax.random.key(0), BATCH)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: (0.4 * rng.standard_normal(x.shape)).astype(np.float32), unboxed(boxed))
    return {**params, "objective": {"temperature": jnp.float32(0.2)}}


def loss_of(system=STAGE_1, batch=BATCH, seed=0):
    return jax.jit(system.loss)(parameters(), {}, batch, jax.random.key(seed))


def test_it_is_a_system_that_embeds_and_matches():
    for protocol in (System, Embeds, Matches):
        assert isinstance(STAGE_1, protocol)
    for path in patterns.flatten(parameters()):
        assert len([p for p in STAGE_1.parts().values() if re.fullmatch(p, path)]) == 1, path
    assert set(STAGE_1.flops_per_example()) <= set(STAGE_1.parts())
    assert STAGE_1.expected_initial_loss(8) is None


# The losses.


@pytest.mark.parametrize("group", [None, GROUP], ids=["no groups", "groups"])
def test_the_loss_is_the_sum_of_its_three_parts(group):
    params, real = parameters(), BATCH["text"] != PAD
    batch = BATCH if group is None else {**BATCH, "group": group}
    total, (metrics, carried) = loss_of(batch=batch)
    assert carried == {}
    parts = [float(metrics[name]) for name in ("contrastive", "matching", "captioning")]
    assert float(total) == pytest.approx(sum(parts), rel=1e-6)

    # Contrastive: the best of an image's queries, over a learned temperature.
    image = STAGE_1.image_features(params, {}, BATCH["image"])
    text = STAGE_1.text_features(params, {}, BATCH["text"])
    assert image.shape == (8, 3, 8) and text.shape == (8, 8)
    np.testing.assert_allclose(jnp.linalg.norm(image, axis=-1), 1, rtol=1e-5)
    square = np.einsum("bqe,ce->bqc", image, text).max(axis=1) / 0.2
    ids = np.arange(8) if group is None else group
    same = ids[:, None] == ids[None, :]
    target = 0.9 * same / same.sum(axis=1) + 0.1 / 8
    sides = [-(target * jax.nn.log_softmax(s, axis=1)).sum(axis=1).mean() for s in (square, square.T)]
    assert parts[0] == pytest.approx(float(np.mean(sides)), rel=1e-4)

    # Matching: each pair, its text with a drawn image, its image with a drawn text.
    keys = jax.random.split(jax.random.key(0), 7)
    other_text, other_image = draw_negatives(keys[3], square, group), draw_negatives(keys[4], square.T, group)
    tokens = STAGE_1.image_tokens(params, {}, BATCH["image"])
    former, head = STAGE_1.qformer.build(), params["matching"]

    def logits(tokens, text):
        found = former.apply({"params": params["qformer"]}, tokens, text, (text != PAD).astype(np.int32)).queries
        return (found @ head["kernel"] + head["bias"]).mean(axis=1)

    pairs = [
        logits(tokens, BATCH["text"]),
        logits(tokens[other_image.index], BATCH["text"]),
        logits(tokens, BATCH["text"][np.asarray(other_text.index)]),
    ]
    expected, _ = matching_loss(jnp.stack(pairs, axis=1), other_image.exists, other_text.exists)
    assert parts[1] == pytest.approx(float(expected), rel=1e-4)
    np.testing.assert_allclose(STAGE_1.match(params, {}, tokens, BATCH["text"]), pairs[0][:, 1], atol=1e-5)
    probability = STAGE_1.match_probability(params, {}, tokens, BATCH["text"])
    np.testing.assert_allclose(probability, jax.nn.softmax(pairs[0])[:, 1], atol=1e-5)

    # Captioning: the text after its new first token, which no place predicts; padding is not learned.
    variables = {"params": params["qformer"]}
    kept = former.apply(variables, tokens, keep=True).kept
    written = np.where(np.arange(LENGTH) == 0, DECODE, BATCH["text"])
    hidden = former.apply(variables, written, kept, real.astype(np.int32), method="write")
    labels = np.where(np.pad(real[:, 1:], ((0, 0), (0, 1))), np.roll(BATCH["text"], -1, axis=1), IGNORED)
    expected, count, _ = dense_next_token_loss(
        former.apply(variables, hidden, method="head_inputs"),
        former.apply(variables, method="head"),
        labels,
        vocab=VOCAB,
        bias=former.apply(variables, method="head_bias"),
        label_smoothing=0.1,
    )
    assert int(count) == (real.sum(axis=1) - 1).sum()
    assert parts[2] == pytest.approx(float(expected / count), rel=1e-4)


def test_padding_changes_no_loss():
    wider = dataclasses.replace(STAGE_1, length=LENGTH + 2)
    padded = {**BATCH, "text": np.pad(BATCH["text"], ((0, 0), (0, 2)), constant_values=PAD)}
    assert float(loss_of(wider, padded)[0]) == pytest.approx(float(loss_of()[0]), rel=1e-5)


def test_one_image_alone_has_no_negatives_and_still_a_loss():
    batch = {**BATCH, "group": np.zeros(8, np.int32)}
    total, (metrics, _) = loss_of(batch=batch)
    assert np.isfinite(float(total)) and float(metrics["matching_accuracy"]) == float(metrics["matching_positives"])


# What trains.


def test_the_encoder_has_no_gradient_and_the_norm_on_its_tokens_has_one():
    def gradient(system):
        return jax.jit(jax.grad(lambda p: system.loss(p, {}, BATCH, jax.random.key(0))[0]))(parameters())

    def moves(tree):
        return [path for path, leaf in patterns.flatten(tree).items() if np.abs(leaf).max() > 0]

    found = gradient(STAGE_1)
    assert STAGE_1.locked() == ("image/.*",) and not moves(found["image"])
    assert {"context_norm/scale", "query_tokens", "vocabulary/embedding", "output_bias"} <= set(moves(found["qformer"]))
    still = set(patterns.flatten(found["qformer"])) - set(moves(found["qformer"]))
    assert all(path.endswith("key/bias") for path in still), still  # a bias on keys changes no output
    assert all(moves(found[name]) for name in ("image_projection", "text_projection", "matching"))
    assert float(found["objective"]["temperature"]) != 0
    open_image = dataclasses.replace(STAGE_1, lock_image=False)
    assert open_image.locked() == () and len(moves(gradient(open_image)["image"])) > 10


def test_the_temperature_stays_above_0():
    low = {**parameters(), "objective": {"temperature": jnp.float32(-3.0)}}
    assert 0 < float(STAGE_1.constrain(low)["objective"]["temperature"]) < 0.01
    assert float(STAGE_1.constrain(parameters())["objective"]["temperature"]) == pytest.approx(0.2)


def test_a_locked_resnet_keeps_its_statistics_and_a_trained_one_does_not():
    resnet = tiny.resnet_clip().image
    former = dataclasses.replace(STAGE_1.qformer, cross_width=resnet.width)
    system = dataclasses.replace(STAGE_1, image=resnet, qformer=former)
    batch = tiny_blip2.batch(system, 4)
    boxed, carried = jax.eval_shape(system.init, jax.random.key(0), batch)
    assert carried["batch_stats"].keys() == {"image"}
    params, carried = (jax.tree.map(lambda x: jnp.ones(x.shape), unboxed(tree)) for tree in (boxed, carried))
    for locked in (True, False):
        other = dataclasses.replace(system, lock_image=locked)
        after = jax.jit(other.loss)(params, carried, batch, jax.random.key(0))[1][1]
        same = jax.tree.map(lambda a, b: bool((a == b).all()), after, carried)
        assert all(jax.tree.leaves(same)) == locked


def train(run, steps=3):
    """The losses of a few steps, and the state after them."""
    state, losses = run.init(), []
    before = tiny.copied(state.frozen)
    for step in range(steps):
        batch = tiny_blip2.batch(run.experiment.system, 16, seed=step)
        state, metrics = run.step(state, jax.device_put({**batch, "group": np.arange(16) // 2}, run.batch_sharding))
        losses.append([float(metrics[name]) for name in ("loss", "contrastive", "matching", "captioning")])
    return losses, before, tiny.copied(state)


@pytest.mark.parametrize(
    "mesh",
    [pytest.param(Mesh(data=1, fsdp=8), id="fsdp=8", marks=pytest.mark.slow), pytest.param(EIGHT, id="2 x 2 x 2")],
)
def test_the_losses_are_the_same_on_every_mesh(mesh):
    expected, _, _ = one_device()
    found, _, _ = on_devices(tiny_blip2.experiment(STAGE_1), mesh, train)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isfinite(expected).all() and len({row[0] for row in expected}) == 3


@functools.cache
def one_device():
    return on_devices(tiny_blip2.experiment(STAGE_1), ONE, train)


def test_frozen_parts_are_bit_equal_after_training():
    _, before, state = one_device()
    same = jax.tree.map(np.array_equal, before, state.frozen)
    assert set(before) == {"image"} and all(jax.tree.leaves(same))
    assert "image" not in state.trainable and "qformer" in (kept := tiny_blip2.state_of(state.optimizer))
    assert "image" not in kept


# Errors.


def test_what_cannot_be_is_refused_by_name():
    former = STAGE_1.qformer
    for changes, words in (
        ({"qformer": dataclasses.replace(former, cross_width=8)}, r"qformer.cross_width is 8, .* 16 wide; set it"),
        ({"qformer": tiny_blip2.NO_TEXT}, "reads and writes texts"),
        ({"length": 9}, r"system.length is 9; it must be 2 to 8"),
        ({"decode": VOCAB}, r"system.decode 32; they must be two tokens of the 32"),
        ({"decode": PAD}, "two tokens"),
        ({"dtype": "float16"}, "system.dtype is 'float16'"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"label_smoothing": 1.0}, "label_smoothing 1.0"),
    ):
        with pytest.raises(InputError, match=words):
            dataclasses.replace(STAGE_1, **changes)


def test_a_tokenizer_must_have_the_marks_that_the_system_knows():
    fine = tiny.TinyTokenizer(vocab_size=31, bos=BOS, eos=EOS, pad_id=PAD)
    STAGE_1.check_tokenizer(fine)
    for changes, words in (
        ({"vocab_size": 33}, "33 ids and the Q-Former 32"),
        ({"pad_id": 3}, r"padding is 3; set system.pad, 0"),
        ({"bos": None}, "mark of the beginning"),
        ({"eos": PAD}, "all of them different"),
        ({"bos": DECODE}, "all of them different"),
    ):
        with pytest.raises(InputError, match=words):
            STAGE_1.check_tokenizer(dataclasses.replace(fine, **changes))


def test_the_defaults_are_the_paper_s():
    system = BLIP2()
    assert system.image.tokens == 257 and system.qformer.queries == 32 and system.length == 32
    assert system.inputs()["image"].shape == (224, 224, 3)
