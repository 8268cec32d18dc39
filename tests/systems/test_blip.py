"""BLIP's pretraining: against a plain reference over 20 steps, on other meshes, resumed, and its parts."""

from __future__ import annotations

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests import tiny, tiny_blip
from tests.tiny_blip import SYSTEMS
from tests.training.test_step import EIGHT, ONE, on_devices
from vlmax.bootstrapping.judging import Filters
from vlmax.errors import InputError
from vlmax.experiment import Checkpoints
from vlmax.models.decoders.bert import BERT
from vlmax.objectives.language import dense_next_token_loss
from vlmax.objectives.matching import Negatives
from vlmax.sharding.mesh import Mesh
from vlmax.sharding.rules import unboxed
from vlmax.systems.blip import BLIP
from vlmax.systems.blip_model import alone, begun, own_of, with_shared
from vlmax.systems.system import Embeds, System, Writes
from vlmax.training import patterns
from vlmax.training.checkpoints import Checkpointer
from vlmax.training.state import params_of

BATCH, QUEUE, STEPS = 16, 48, 20
FSDP = Mesh(data=1, fsdp=8)
PRETRAINING: BLIP = SYSTEMS["pretraining"]


def trained(run, steps: int, name: str = "pretraining", state=None, first: int = 0):
    """The metrics of each step, the states before each, and the last state."""
    state = run.init() if state is None else state
    states, metrics = [], []
    for step in range(first, first + steps):
        states.append(tiny.copied({"params": params_of(state), "carried": state.carried}))
        batch = jax.device_put(tiny_blip.batch(name, BATCH, seed=step), run.batch_sharding)
        state, found = run.step(state, batch)
        metrics.append({key: float(value) for key, value in found.items()})
    return metrics, states, state


@pytest.fixture(scope="module")
def pretrained():
    """Twenty steps on one device."""
    return on_devices(tiny_blip.experiment("pretraining"), ONE, lambda run: trained(run, STEPS))


@pytest.fixture(scope="module")
def fresh():
    """Parameters and carried state of pretraining."""
    params, carried = jax.jit(PRETRAINING.init)(jax.random.key(0), tiny_blip.batch("pretraining", 2))
    return unboxed(params), unboxed(carried)


def test_what_the_systems_can_do():
    for name, also in {
        "pretraining": (Embeds, Filters, Writes),
        "retrieval": (Embeds, Filters),
        "caption": (Writes,),
        "vqa": (Writes,),
        "nlvr2": (),
    }.items():
        for protocol in (System, *also):
            assert isinstance(SYSTEMS[name], protocol), (name, protocol)


# Momentum, queue and ramp, against NumPy.


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def softmax(x):
    x = np.exp(x - x.max(axis=1, keepdims=True))
    return x / x.sum(axis=1, keepdims=True)


def contrast(own, twin, columns, temperature, alpha):
    """One direction, as the public code writes it."""
    logits, soft = own @ columns.T / temperature, twin @ columns.T / temperature
    hard = np.zeros_like(soft)
    np.fill_diagonal(hard, 1)
    targets = alpha * softmax(soft) + (1 - alpha) * hard
    return -(np.log(softmax(logits)) * targets).sum(axis=1).mean()


def test_twenty_steps_are_those_of_a_plain_reference(pretrained):
    metrics, states, last = pretrained
    system, model = PRETRAINING, PRETRAINING.model
    options = system.alignment

    @jax.jit
    def features(params, batch):
        seen, _ = model.see(params["image"], {}, batch["image"])
        found = system.alignment.features(params, seen.pooled, model.read(params["text"], batch["text"]))
        return found["image"], found["text"]

    def wide(tree):
        return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)

    def twins_of(params):
        kept = {name: params[name] for name in ("image", "image_projection", "text_projection")}
        return {**kept, "text": alone(params["text"])}

    image_queue, text_queue = (np.array(states[0]["carried"]["queue"][side], np.float64) for side in ("image", "text"))
    np.testing.assert_allclose(np.linalg.norm(image_queue, axis=1), 1, rtol=1e-5)
    place, momentum = 0, None
    for step in range(STEPS):
        params, carried = states[step]["params"], states[step]["carried"]
        batch = tiny_blip.batch("pretraining", BATCH, seed=step)
        for name, expected in (("image", image_queue), ("text", text_queue)):
            np.testing.assert_allclose(carried["queue"][name], expected, atol=1e-5)
        assert int(carried["queue"]["next"]) == place and int(carried["updates"]) == step
        assert (np.asarray(carried["queue"]["group"]) == -1).all()

        now = wide(twins_of(params))
        momentum = now if momentum is None else jax.tree.map(
            lambda m, p: options.momentum * m + (1 - options.momentum) * p, momentum, now
        )  # fmt: skip
        after = (states[step + 1] if step + 1 < STEPS else {"carried": last.carried})["carried"]["momentum"]
        for found, expected in zip(jax.tree.leaves(after), jax.tree.leaves(momentum), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)

        alpha = 0.4 * min(1.0, step / options.ramp_steps)
        assert metrics[step]["alpha"] == pytest.approx(alpha, abs=1e-7)
        temperature = float(params["objective"]["temperature"])
        image, text = wide(features(params, batch))
        image_twin, text_twin = wide(features(jax.tree.map(np.float32, momentum), batch))
        to_text = contrast(image, image_twin, np.concatenate([text_twin, text_queue]), temperature, alpha)
        to_image = contrast(text, text_twin, np.concatenate([image_twin, image_queue]), temperature, alpha)
        assert metrics[step]["contrastive_loss"] == pytest.approx((to_text + to_image) / 2, rel=1e-5)

        image_queue[place : place + BATCH], text_queue[place : place + BATCH] = image_twin, text_twin
        place = (place + BATCH) % QUEUE


def test_it_learns(pretrained):
    metrics, _, _ = pretrained
    assert metrics[-1]["language_loss"] < metrics[0]["language_loss"]
    total = ("contrastive_loss", "matching_loss", "language_loss")
    for step in metrics:
        assert step["loss"] == pytest.approx(sum(step[name] for name in total), rel=1e-6)
    assert metrics[0]["matching_loss"] == pytest.approx(math.log(2), rel=0.3)


# Other meshes.


@pytest.mark.parametrize(
    "mesh", [pytest.param(FSDP, id="fsdp 8", marks=pytest.mark.slow), pytest.param(EIGHT, id="2 x 2 x 2")]
)
@pytest.mark.parametrize("name", ["pretraining", pytest.param("retrieval", marks=pytest.mark.slow)])
def test_the_losses_are_those_of_one_device(mesh, name):
    experiment = tiny_blip.experiment(name)
    expected_metrics, _, alone = on_devices(experiment, ONE, lambda run: trained(run, 6, name))

    def work(run):
        metrics, _, state = trained(run, 6, name)
        for side in ("image", "text"):
            assert run.abstract_state.carried["queue"][side].sharding.spec == PartitionSpec(("data", "fsdp"), None)
        twin, own = run.abstract_state.carried["momentum"], run.abstract_state.trainable
        path = ("text", "transformer", "layers", "mlp", "up", "kernel")
        for key in path:
            twin, own = twin[key], own[key]
        assert twin.sharding.spec == own.sharding.spec and any(own.sharding.spec)
        return metrics, tiny.copied(state.carried)

    metrics, carried = on_devices(experiment, mesh, work)
    for found, wanted in zip(metrics, expected_metrics, strict=True):
        for loss in ("loss", "contrastive_loss", "matching_loss", "matching_accuracy", "gradient_norm"):
            assert found[loss] == pytest.approx(wanted[loss], rel=1e-5), loss
    expected = patterns.flatten(alone.carried)
    for path, found in patterns.flatten(carried).items():
        if not path.endswith("key/bias"):  # whose gradient is nothing but rounding, which Adam makes large
            np.testing.assert_allclose(found, expected[path], atol=2e-5, err_msg=path)


# Resuming.


def test_a_run_resumed_in_the_middle_of_the_ramp_with_a_queue_half_full_is_the_same_to_the_bit(tmp_path):
    def work(run):
        half = QUEUE // BATCH // 2 + 1
        _, _, middle = trained(run, half)
        checkpointer = Checkpointer(tmp_path, Checkpoints(), lambda _: None)
        checkpointer.save(half, middle, {"step": half, "seed": 0, "order": "[]"}, {"name": "tiny"})
        checkpointer.wait()
        straight, _, one = trained(run, 5, state=middle, first=half)
        restored = checkpointer.restore(run.abstract_state)[1]
        checkpointer.close()
        groups = np.asarray(restored.carried["queue"]["image"])
        assert int(restored.carried["queue"]["next"]) == half * BATCH and len(groups) == QUEUE
        assert 0 < float(restored.carried["updates"]) < PRETRAINING.alignment.ramp_steps
        resumed, _, two = trained(run, 5, state=restored, first=half)
        assert straight == resumed
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
            np.testing.assert_array_equal(a, b)

    on_devices(tiny_blip.experiment("pretraining"), EIGHT, work)


def test_a_step_that_is_not_finite_leaves_queue_momentum_and_ramp_as_they_were():
    def work(run):
        _, _, state = trained(run, 1)
        before = tiny.copied(state.carried)
        temperature = {"objective": {"temperature": state.trainable["objective"]["temperature"] * jnp.nan}}
        state = dataclasses.replace(state, trainable={**state.trainable, **temperature})
        batch = jax.device_put(tiny_blip.batch("pretraining", BATCH, seed=1), run.batch_sharding)
        after, metrics = run.step(state, batch)
        assert int(metrics["nonfinite_in_row"]) == 1
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after.carried), strict=True):
            np.testing.assert_array_equal(a, b)

    on_devices(tiny_blip.experiment("pretraining"), ONE, work)


# The three losses.


def test_the_text_is_predicted_word_by_word_behind_its_mark(fresh):
    params, carried = fresh
    batch = tiny_blip.batch("pretraining", BATCH)
    _, (metrics, _) = jax.jit(PRETRAINING.loss)(params, carried, batch, jax.random.key(1))
    module, decoder = PRETRAINING.decoder_module(), PRETRAINING.decoder_params(params)
    tokens = PRETRAINING.image_tokens(params, carried, batch["image"])
    text = np.where(np.arange(tiny_blip.LENGTH) == 0, tiny_blip.DECODE, batch["text"])
    out = module.apply(decoder, text, context=tokens)  # causal: padding at the right is seen by padding alone
    labels = np.pad(batch["text"][:, 1:], ((0, 0), (0, 1)), constant_values=tiny_blip.PAD)
    labels = np.where(labels == tiny_blip.PAD, -100, labels)
    hidden, head, bias = (
        module.apply(decoder, *x, method=m)
        for m, x in (("head_inputs", (out.tokens,)), ("head", ()), ("head_bias", ()))
    )
    loss, count, sums = dense_next_token_loss(
        hidden, head, labels, vocab=tiny_blip.VOCAB, bias=bias, label_smoothing=0.1
    )
    assert float(metrics["language_loss"]) == pytest.approx(float(loss / count), rel=1e-5)
    assert float(metrics["language_accuracy"]) == pytest.approx(float(sums["correct"] / count), abs=1e-6)
    assert int(count) == (labels != -100).sum() and (text != tiny_blip.DECODE).any()


def test_two_texts_of_an_image_are_read_as_if_each_were_alone(fresh):
    params, carried = fresh
    model, batch = PRETRAINING.model, tiny_blip.batch("pretraining", 8)
    tokens, text = PRETRAINING.image_tokens(params, carried, batch["image"]), batch["text"]
    draw = np.roll(np.arange(8), 3)
    drawn = Negatives(jnp.asarray(draw), jnp.ones(8, bool))
    logits = PRETRAINING.alignment._matched(model, params, text, tokens, drawn, drawn, jax.random.key(0))
    pairs = [(tokens, text), (tokens[draw], text), (tokens, text[draw])]
    for place, (images, texts) in enumerate(pairs):
        found = PRETRAINING.match(params, carried, images, texts)
        np.testing.assert_allclose(logits[:, place, 1], found, atol=1e-5)
        probability = PRETRAINING.match_probability(params, carried, images, texts)
        np.testing.assert_allclose(jax.nn.softmax(logits[:, place])[:, 1], probability, atol=1e-5)


def test_pairs_of_one_group_are_right_for_each_other_and_no_negatives(fresh):
    params, carried = fresh
    batch = tiny_blip.batch("pretraining", BATCH)
    run = jax.jit(PRETRAINING.loss)

    def losses(group):
        given = batch if group is None else {**batch, "group": np.asarray(group, np.int32)}
        loss, (metrics, after) = run(params, carried, given, jax.random.key(1))
        assert math.isfinite(loss)
        return metrics, after

    plain, _ = losses(None)
    own, after = losses(np.arange(BATCH) + 5)
    assert float(own["contrastive_loss"]) == pytest.approx(float(plain["contrastive_loss"]), rel=1e-6)
    np.testing.assert_array_equal(after["queue"]["group"][:BATCH], np.arange(BATCH) + 5)
    np.testing.assert_array_equal(after["queue"]["group"][BATCH:], -1)
    one, _ = losses(np.zeros(BATCH))  # nothing can be drawn: the pairs themselves are all that count
    assert float(one["matching_accuracy"]) == float(one["matching_positives"])
    assert float(one["contrastive_loss"]) != pytest.approx(float(plain["contrastive_loss"]), rel=5e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_losses_are_numbers_and_gradients_reach_every_part(dtype):
    system = dataclasses.replace(PRETRAINING, model=tiny_blip.model(dtype=dtype))
    batch = tiny_blip.batch("pretraining", BATCH)
    params, carried = map(unboxed, jax.jit(system.init)(jax.random.key(0), batch))

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: system.loss(p, carried, batch, jax.random.key(1))[0])(params)

    for path, leaf in patterns.flatten(gradient(params)).items():
        assert bool(jnp.isfinite(leaf).all()), path
        if not path.endswith("key/bias"):  # a bias on keys changes no softmax
            assert float(jnp.abs(leaf).max()) > 0, path


@pytest.mark.slow
def test_a_resnet_moves_its_own_statistics_and_not_those_of_its_twin():
    system = dataclasses.replace(PRETRAINING, model=tiny_blip.resnet_model())
    batch = tiny_blip.batch("pretraining", BATCH, image=32)
    params, carried = map(unboxed, jax.jit(system.init)(jax.random.key(0), batch))
    assert set(carried) == {"batch_stats", "momentum", "queue", "updates"}
    loss, (_, after) = jax.jit(system.loss)(params, carried, batch, jax.random.key(1))
    assert math.isfinite(loss) and jax.tree.structure(after) == jax.tree.structure(carried)
    module = system.model.image.build()
    _, expected = module.apply(
        {"params": params["image"], "batch_stats": carried["batch_stats"]["image"]},
        system.model._pixels(batch["image"]),
        deterministic=False,
        mutable=["batch_stats"],
    )
    pairs = jax.tree.leaves(after["batch_stats"]["image"]), jax.tree.leaves(expected["batch_stats"])
    for found, wanted in zip(*pairs, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


# Tying.


@pytest.mark.parametrize(
    ("tied", "millions"),
    [("all", 224), ("all_but_cross_attention", 252), ("all_but_self_attention", 252), ("none", 361)],
)
def test_sizes_are_those_of_the_papers_table_3(tied, millions):
    system = BLIP(tied=tied)
    batch = {name: jnp.zeros((1, *x.shape), x.dtype) for name, x in system.inputs().items()}
    params, _ = jax.eval_shape(system.init, jax.random.key(0), batch)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(unboxed(params)))
    assert abs(count / 1e6 - millions) < 1.5


@pytest.mark.parametrize("tied", ["all", "all_but_cross_attention", "all_but_self_attention", "none"])
def test_a_decoder_is_its_own_part_and_the_encoders(tied):
    text = np.zeros((1, 4), np.int32)
    encoder = unboxed(tiny_blip.model().init_encoder(jax.random.key(0), text))
    decoder = unboxed(tiny_blip.model().init_decoder(jax.random.key(1), text))
    own = own_of(decoder, tied)
    whole = patterns.flatten(with_shared(own, encoder))
    assert {p: x.shape for p, x in whole.items()} == {p: x.shape for p, x in patterns.flatten(decoder).items()}
    mine, theirs = set(patterns.flatten(own)), patterns.flatten(encoder)
    for path, leaf in whole.items():
        assert leaf is (patterns.flatten(own)[path] if path in mine else theirs[path])
    layers = {path.split("/")[2] for path in mine if path.startswith("transformer")}
    wanted = {
        "all": set(),
        "all_but_self_attention": {"attention", "attention_norm"},
        "all_but_cross_attention": {"cross_attention", "cross_attention_norm"},
        "none": {"attention", "attention_norm", "cross_attention", "cross_attention_norm", "mlp", "mlp_norm"},
    }
    assert layers == wanted[tied]
    assert ("vocabulary/embedding" in mine) == (tied == "none") and {"output_bias"} < mine


# Parts, FLOPs.


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_parts_cover_every_parameter_once(name):
    system = SYSTEMS[name]
    example = {key: jnp.zeros((1, *x.shape), x.dtype) for key, x in system.inputs().items()}
    boxed, _ = jax.eval_shape(system.init, jax.random.key(0), example)
    for path in patterns.flatten(boxed):
        found = [part for part, pattern in system.parts().items() if re.fullmatch(pattern, path)]
        assert len(found) == 1, (path, found)
    assert set(system.flops_per_example()) <= set(system.parts())
    assert all(flops > 0 for flops in system.flops_per_example().values())
    assert system.locked() == () and system.expected_initial_loss(8) is None
    assert {key: (x.shape, x.dtype) for key, x in system.inputs().items()} == {
        key: (x.shape[1:], x.dtype) for key, x in tiny_blip.batch(name, 3).items()
    }


def test_the_temperature_stays_within_its_bounds():
    for value, kept in ((0.0, 0.001), (0.2, 0.2), (3.0, 0.5)):
        found = PRETRAINING.constrain({"objective": {"temperature": jnp.float32(value)}, "text": 1})
        assert float(found["objective"]["temperature"]) == pytest.approx(kept) and found["text"] == 1


def test_another_first_token():
    np.testing.assert_array_equal(begun(jnp.array([[1, 2], [3, 4]]), 9), [[9, 2], [9, 4]])


# Errors.


@pytest.mark.parametrize("name", ["pretraining", "retrieval"])
def test_a_queue_that_the_batch_does_not_divide_is_told_before_anything_is_compiled(name):
    with pytest.raises(InputError, match=r"alignment.queue is 48, which the batch of 20 does not divide.*is 40"):
        on_devices(tiny_blip.experiment(name, rows=20), ONE, lambda run: None)


WRONG = {
    r"model.dtype is 'float16'": lambda: tiny_blip.model(dtype="float16"),
    r"causal is True.*leave them False": lambda: tiny_blip.model(text=BERT(causal=True)),
    r"decode is the token 40, and system.model.text.vocab is 32": lambda: tiny_blip.model(decode=40),
    r"must be three different tokens": lambda: tiny_blip.model(decode=tiny_blip.PAD),
    r"momentum is 1.0": lambda: tiny_blip.alignment(momentum=1.0),
    r"alignment.queue is 0; it must be at least 1": lambda: tiny_blip.alignment(queue=0),
    r"temperature is 0.0; it must be 0.001 to 0.5": lambda: tiny_blip.alignment(temperature=0.0),
    r"system.length is 9; it must be 2 to 8": lambda: dataclasses.replace(PRETRAINING, length=9),
    r"label_smoothing is 1.0": lambda: dataclasses.replace(PRETRAINING, label_smoothing=1.0),
    r"system.answers is 0": lambda: dataclasses.replace(SYSTEMS["vqa"], answers=0),
}


@pytest.mark.parametrize("message", WRONG)
def test_impossible_values_are_named(message):
    with pytest.raises(InputError, match=message):
        WRONG[message]()


@dataclasses.dataclass(frozen=True)
class Words:
    """Stands in for a tokenizer."""

    vocab_size: int = 32
    pad_id: int = tiny_blip.PAD
    bos: int | None = tiny_blip.BEGIN
    eos: int | None = tiny_blip.END
    marks: tuple[int, int] = (tiny_blip.DECODE, tiny_blip.ENCODE)

    def encode(self, text):
        return [self.marks[("[DEC]", "[ENC]").index(text)]]


def test_a_tokenizer_must_have_the_models_ids():
    PRETRAINING.check_tokenizer(Words())
    for words, message in (
        (Words(vocab_size=33), r"33 ids and the text model embeds 32"),
        (Words(bos=None), r"lacks a mark of the beginning"),
        (Words(pad_id=0), r"fills texts with 0, and system.model.pad is 27"),
        (Words(marks=(30, 5)), r"model.encode is 31, and the tokenizer makes \[5\] of \[ENC\]"),
    ):
        with pytest.raises(InputError, match=message):
            PRETRAINING.check_tokenizer(words)
