"""Language models as the trainer and the evaluations see them, and documents that share a row."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny, tiny_text
from tests.tiny_text import DECODERS, LENGTH, row, system
from vlmax.data.texts import IGNORED
from vlmax.errors import InputError
from vlmax.models.decoders import decoder
from vlmax.sharding.rules import unboxed
from vlmax.systems.language_model import Causal, LanguageModel, TextToText, positions_in_documents
from vlmax.systems.system import Additive, Scores, System, TwoPass
from vlmax.training import patterns

every = pytest.mark.parametrize("name", DECODERS)
TEXTS = ("abcd", "fgh", "ijkl")


@functools.cache
def built(name):
    """The system, random parameters, and the jitted logits of a batch as the loss would read it."""
    made = system(name)
    boxed, carried = jax.eval_shape(made.init, jax.random.key(0), tiny_text.batch(name, 1))
    assert carried == {}
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: (0.4 * rng.standard_normal(x.shape)).astype(np.float32), unboxed(boxed))
    module = made.text.decoder.build()

    @jax.jit
    def logits(batch):
        inputs, options = made.text.call(batch)
        out = module.apply({"params": params}, *inputs, **options)
        return module.apply({"params": params}, out.tokens, method="logits")

    return made, params, logits


def one(name, *texts):
    return {feature: x[None] for feature, x in row(name, *texts).items()}


def segments(name, batch):
    return batch["segments" if "segments" in batch else "target_segments"]


# Documents that share a row.


@every
@pytest.mark.parametrize("edited", [0, 1, 2])
def test_editing_one_document_changes_no_logit_of_another(name, edited):
    _, _, logits = built(name)
    texts = list(TEXTS)
    texts[edited] = "".join(chr(ord(c) + 5) for c in texts[edited])
    before, after = one(name, *TEXTS), one(name, *texts)
    ids = segments(name, before)
    assert ids.max() == 3 and (ids == 0).any()
    np.testing.assert_array_equal(ids, segments(name, after))
    changed = np.any(logits(before) != logits(after), axis=-1)
    assert not changed[ids != edited + 1].any() and changed[ids == edited + 1].any()


@every
def test_a_packed_document_is_read_as_if_it_were_alone(name):
    _, _, logits = built(name)
    rows = [row(name, *TEXTS), *(row(name, text) for text in TEXTS)]
    if "segments" not in rows[0]:  # the same parts of each text, wherever it stands
        rows = pairs_cut_at_two(name)
    batch = {feature: np.stack([r[feature] for r in rows]) for feature in rows[0]}
    found, ids = np.asarray(logits(batch)), segments(name, batch)
    for number in (1, 2, 3):
        packed, alone = found[0][ids[0] == number], found[number][ids[number] == 1]
        assert len(packed) > 0
        np.testing.assert_allclose(packed, alone, atol=1e-5)


def pairs_cut_at_two(name):
    """Rows of all three pairs, and of each by itself, with prompts of two letters."""
    make = dataclasses.replace(tiny_text.preprocess(name), learn="answer")
    pieces = [make.document(tiny_text.Texts((text,))[0], np.random.default_rng(0)) for text in TEXTS]
    return [{n: packed[n] for n in make.features()} for packed in map(make.pack, [pieces, *([p] for p in pieces)])]


def test_positions_begin_anew_with_every_document():
    ids = np.array([[1, 1, 1, 2, 2, 3, 0, 0], [1] * 8, [0] * 8, [1, 2, 3, 4, 4, 4, 4, 0]], np.int32)
    found = np.asarray(positions_in_documents(ids))
    counted = decoder.read(ids, 8, segments=ids).positions
    assert found[0][:6].tolist() == [0, 1, 2, 0, 1, 0]
    np.testing.assert_array_equal(found[ids > 0], np.asarray(counted)[ids > 0])


# The loss.


@pytest.mark.parametrize("name", ["llama", "opt_350m", "t5", "t5_first"])
def test_the_loss_is_the_mean_over_all_learned_tokens(name):
    made, params, logits = built(name)
    batch = tiny_text.batch(name, 6)
    labels = batch["labels"]
    log_p = jax.nn.log_softmax(logits(batch))
    taken = np.take_along_axis(np.asarray(log_p), np.where(labels == IGNORED, 0, labels)[..., None], -1)[..., 0]
    learned = labels != IGNORED
    loss, (metrics, carried) = jax.jit(made.loss)(params, {}, batch, jax.random.key(0))
    assert carried == {} and float(loss) == pytest.approx(-taken[learned].mean(), rel=1e-5)
    assert float(metrics["nll"]) == pytest.approx(float(loss), rel=1e-6)
    right = float((np.argmax(np.asarray(log_p), -1) == labels)[learned].mean())
    assert float(metrics["accuracy"]) == pytest.approx(right, abs=1e-6)
    assert int(metrics["tokens"]) == learned.sum() == int(made.counts(batch))
    sums = jax.jit(made.score)(params, {}, batch)
    np.testing.assert_allclose(sums["nll"], -np.where(learned, taken, 0).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(sums["tokens"], learned.sum(1))
    assert float(sums["right"].sum()) == pytest.approx(right * learned.sum(), abs=1e-3)


def test_smoothing_and_z_loss_reach_the_loss():
    made, params, logits = built("llama")
    batch = tiny_text.batch("llama", 3)
    other = dataclasses.replace(made, label_smoothing=0.1, z_loss=0.01)
    loss, (metrics, _) = jax.jit(other.loss)(params, {}, batch, jax.random.key(0))
    learned = batch["labels"] != IGNORED
    found = np.asarray(logits(batch))[learned]
    log_p, log_z = jax.nn.log_softmax(found), jax.nn.logsumexp(found, axis=-1)
    nll = -np.take_along_axis(np.asarray(log_p), batch["labels"][learned][:, None], -1)[:, 0]
    expected = 0.9 * nll - 0.1 * log_p.mean(-1) + 0.01 * log_z**2
    assert float(loss) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert float(metrics["nll"]) == pytest.approx(float(nll.mean()), rel=1e-5)


def test_a_batch_without_a_learned_token_has_loss_zero_and_no_gradient():
    made, params, _ = built("opt")
    batch = {**tiny_text.batch("opt", 2), "labels": np.full((2, LENGTH), IGNORED, np.int32)}
    loss, gradient = jax.jit(jax.value_and_grad(lambda p: made.loss(p, {}, batch, jax.random.key(0))[0]))(params)
    assert float(loss) == 0 and not any(np.asarray(g).any() for g in jax.tree.leaves(gradient))


def test_dropout_is_for_training_alone():
    dropping = dataclasses.replace(DECODERS["opt"], dropout=0.3)
    made = system("opt", text=Causal(dropping, LENGTH))
    _, params, _ = built("opt")
    batch = tiny_text.batch("opt", 3)
    losses = [float(jax.jit(made.loss)(params, {}, batch, jax.random.key(i))[0]) for i in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    expected = built("opt")[0].score(params, {}, batch)
    np.testing.assert_array_equal(made.score(params, {}, batch)["nll"], expected["nll"])


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_the_expected_loss_at_the_start_is_near_the_real_one(name):
    made = system(name)
    batch = tiny_text.batch(name, 32)
    params, _ = jax.jit(made.init)(jax.random.key(0), batch)
    loss, _ = jax.jit(made.loss)(unboxed(params), {}, batch, jax.random.key(0))
    assert float(loss) == pytest.approx(made.expected_initial_loss(32), rel=0.1)
    assert dataclasses.replace(made, z_loss=1.0).expected_initial_loss(1) > made.expected_initial_loss(1) + 10
    for tied in ("qwen2", "opt", "gpt2", "t5_first"):
        assert system(tied, z_loss=1.0).expected_initial_loss(1) is None


# The protocol.


@every
def test_it_is_a_system_that_adds_up(name):
    made, params, _ = built(name)
    for protocol in (System, Additive, Scores):
        assert isinstance(made, protocol)
    assert not isinstance(made, TwoPass) and not isinstance(tiny.clip(), Additive | Scores)
    assert made.inputs().keys() == tiny_text.preprocess(name).features().keys()
    for path in patterns.flatten(params):
        assert [part for part, pattern in made.parts().items() if re.fullmatch(pattern, path)] == ["language model"]
    assert made.flops_per_example().keys() == made.parts().keys() and made.locked() == ()
    assert made.constrain(params) is params


def test_flops_are_the_decoders():
    assert system("llama").flops_per_example()["language model"] == DECODERS["llama"].flops(LENGTH)
    t5 = DECODERS["t5"]
    longer = LanguageModel(TextToText(t5, read=10, length=6))
    assert longer.flops_per_example()["language model"] == t5.flops(6, 10)


def test_what_cannot_be_is_refused_by_name():
    with pytest.raises(InputError, match=r"system.text.length is 17; it must be 1 to 16, .*decoder.context"):
        Causal(DECODERS["opt"], 17)
    with pytest.raises(InputError, match=r"system.text.read is 17"):
        TextToText(DECODERS["t5"], 17, 4)
    with pytest.raises(InputError, match=r"system.text.length is 0"):
        TextToText(DECODERS["t5"], 4, 0)
    with pytest.raises(InputError, match=r"system.dtype is 'float16'"):
        system("opt", dtype="float16")
    for changes in ({"label_smoothing": 1.0}, {"z_loss": -1.0}, {"chunk": 0}):
        with pytest.raises(InputError, match=f"{next(iter(changes))}"):
            system("opt", **changes)


def test_a_tokenizer_must_fit_the_vocabulary():
    system("opt").check_tokenizer(tiny.TinyTokenizer(vocab_size=30))
    with pytest.raises(InputError, match=r"31 ids and the decoder 30; set system.text.decoder.vocab to at least 31"):
        system("opt").check_tokenizer(tiny.TinyTokenizer(vocab_size=31))


def test_bfloat16_computes_near_float32():
    made, params, _ = built("llama")
    batch = tiny_text.batch("llama", 4)
    low = dataclasses.replace(made, dtype="bfloat16")
    losses = [float(jax.jit(s.loss)(params, {}, batch, jax.random.key(0))[0]) for s in (made, low)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[0] != losses[1]
    gradient = jax.jit(jax.grad(lambda p: low.loss(p, {}, batch, jax.random.key(0))[0]))(params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradient))
