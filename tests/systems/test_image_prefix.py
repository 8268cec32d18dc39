"""Language models that read images: what they read, what trains, and what others use of them."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny, tiny_blip2
from tests.tiny_blip2 import NO_TEXT, QFORMER, SYSTEMS, stage_2
from tests.tiny_text import DECODERS
from tests.training.test_step import EIGHT, ONE, on_devices
from vlmax.decoding.generate import generate
from vlmax.decoding.prompts import Prompt
from vlmax.decoding.settings import Generation
from vlmax.errors import InputError
from vlmax.models.connectors.projection import Projection
from vlmax.objectives.language_device import IGNORED
from vlmax.sharding.mesh import Mesh
from vlmax.sharding.rules import unboxed
from vlmax.systems.image_places import Before, Placed, merged
from vlmax.systems.language_model import Causal, TextToText
from vlmax.systems.system import Additive, Scores, System, Writes
from vlmax.training import patterns
from vlmax.training.groups import LayerDecay
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Constant

NAMES = [name for name in SYSTEMS if name != "stage 1"]
every = pytest.mark.parametrize("name", NAMES)


@functools.cache
def built(name):
    """The system, random parameters and a batch."""
    system = SYSTEMS[name]
    batch = tiny_blip2.batch(system)
    boxed, carried = jax.eval_shape(system.init, jax.random.key(0), batch)
    assert carried == {}
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: (0.4 * rng.standard_normal(x.shape)).astype(np.float32), unboxed(boxed))
    return system, params, batch


def sums(name, batch=None, params=None):
    system, given, plain = built(name)
    return jax.jit(system.score)(params or given, {}, plain if batch is None else batch)


@every
def test_it_is_a_system_that_adds_up_scores_and_writes(name):
    system, params, batch = built(name)
    for protocol in (System, Additive, Scores, Writes):
        assert isinstance(system, protocol)
    for path in patterns.flatten(params):
        assert len([p for p in system.parts().values() if re.fullmatch(p, path)]) == 1, path
    assert set(system.flops_per_example()) == set(system.parts())
    assert {name: x.shape[1:] for name, x in batch.items()} == {n: x.shape for n, x in system.inputs().items()}
    assert system.decoder_module() == system.decoder_module() and system.constrain(params) is params
    assert system.decoder_params(params)["params"] is params["text"]


# What the language model reads.


def test_a_decoder_reads_the_image_before_the_text():
    system, params, batch = built("opt")
    image, _ = system._image(params, {}, batch)
    assert image.shape == (8, 3, 16)
    decoder, variables = DECODERS["opt"].build(), {"params": params["text"]}
    words = decoder.apply(variables, batch["text"], method="embed")
    ids = np.pad(batch["segments"], ((0, 0), (3, 0)), constant_values=1)
    out = decoder.apply(variables, jnp.concatenate([image, words], axis=1), segments=ids).tokens
    log_p = np.asarray(jax.nn.log_softmax(decoder.apply(variables, out, method="logits")))[:, 3:]
    learned = batch["labels"] != IGNORED
    taken = np.take_along_axis(log_p, np.where(learned, batch["labels"], 0)[..., None], axis=-1)[..., 0]
    found = sums("opt")
    np.testing.assert_allclose(found["nll"], -np.where(learned, taken, 0).sum(axis=1), rtol=1e-4)
    np.testing.assert_array_equal(found["tokens"], learned.sum(axis=1))
    loss, (metrics, _) = jax.jit(system.loss)(params, {}, batch, jax.random.key(0))
    assert float(loss) == pytest.approx(float(-taken[learned].mean()), rel=1e-4)
    assert int(metrics["tokens"]) == learned.sum() == int(system.counts(batch))


def test_an_encoder_reads_image_and_prefix_and_a_decoder_writes_the_suffix():
    system, params, batch = built("t5")
    image, _ = system._image(params, {}, batch)
    t5, variables = DECODERS["t5"].build(), {"params": params["text"]}
    words = t5.apply(variables, batch["inputs"], method="embed")
    ids = np.pad(batch["input_segments"], ((0, 0), (3, 0)), constant_values=1)
    options = {"segments": ids, "target_segments": batch["target_segments"]}
    out = t5.apply(variables, jnp.concatenate([image, words], axis=1), batch["targets"], **options).tokens
    log_p = np.asarray(jax.nn.log_softmax(t5.apply(variables, out, method="logits")))
    learned = batch["labels"] != IGNORED
    taken = np.take_along_axis(log_p, np.where(learned, batch["labels"], 0)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(sums("t5")["nll"], -np.where(learned, taken, 0).sum(axis=1), rtol=1e-4)


@every
def test_every_image_counts_and_that_of_another_row_does_not(name):
    _, _, batch = built(name)
    other = batch["image"].copy()
    other[3] = 255 - other[3]
    before, after = sums(name)["nll"], sums(name, {**batch, "image": other})["nll"]
    np.testing.assert_array_equal(np.asarray(before) != np.asarray(after), np.arange(8) == 3)


def test_an_instruction_is_read_by_the_queries_and_its_padding_is_not():
    system, params, batch = built("instruct")
    pad = batch["instruction"] == 0
    assert pad.any()
    other = np.where(np.arange(8)[:, None] == 2, (batch["instruction"] + 5) % 30 + 1, batch["instruction"])
    other = np.where(pad, 0, other)
    before, after = sums("instruct")["nll"], sums("instruct", {**batch, "instruction": other})["nll"]
    np.testing.assert_array_equal(np.asarray(before) != np.asarray(after), np.arange(8) == 2)
    longer = dataclasses.replace(system, instruction=7)
    wider = {**batch, "instruction": np.pad(batch["instruction"], ((0, 0), (0, 2)))}
    np.testing.assert_allclose(jax.jit(longer.score)(params, {}, wider)["nll"], sums("instruct")["nll"], rtol=1e-5)


# Images at their places.


def test_images_before_the_text_are_images_at_its_first_places():
    system, params, batch = built("opt")
    placed = dataclasses.replace(system, layout=Placed(1), text=Causal(DECODERS["opt"], 11))
    before = ((0, 0), (3, 0))
    other = {
        "image": batch["image"][:, None],
        "text": np.pad(batch["text"], before),
        "labels": np.pad(batch["labels"], before, constant_values=IGNORED),
        "segments": np.pad(batch["segments"], before, constant_values=1),
        "places": np.broadcast_to(np.where(np.arange(11) < 3, np.arange(11), -1), (8, 11)).astype(np.int32),
    }
    np.testing.assert_allclose(jax.jit(placed.score)(params, {}, other)["nll"], sums("opt")["nll"], rtol=1e-5)


def test_packed_documents_do_not_see_each_other_s_images():
    system, params, batch = built("llava")
    count, place = system.image_tokens_each, np.arange(16)
    assert count == 4  # patches alone: the class token is left out
    # Two documents of eight places, each with its image at places 1 to 4.
    inner = place % 8 - 1
    places = np.where((inner >= 0) & (inner < count), inner + place // 8 * count, -1)
    segments = 1 + place // 8
    rows = {"places": places, "segments": segments, "labels": np.where(places >= 0, IGNORED, 5 + place)}
    packed = {**batch, **{name: np.tile(row[None], (8, 1)).astype(np.int32) for name, row in rows.items()}}

    def nll(batch, document):
        labels = np.where(segments == document, batch["labels"], IGNORED)
        return np.asarray(jax.jit(system.score)(params, {}, {**batch, "labels": labels})["nll"])

    for edited in (0, 1):
        image = packed["image"].copy()
        image[:, edited] = 255 - image[:, edited]
        changed = {d: nll(packed, d) != nll({**packed, "image": image}, d) for d in (1, 2)}
        assert changed[edited + 1].all() and not changed[2 - edited].any()
    # And a document is read as though it were alone.
    alone = {name: packed[name][:, 8:].copy() for name in ("text", "labels", "segments", "places")}
    alone["places"] = np.where(alone["places"] < 0, -1, alone["places"] - count)
    alone["image"] = packed["image"][:, 1:]
    single = dataclasses.replace(system, layout=Placed(1), text=Causal(DECODERS["llama"], 8))
    np.testing.assert_allclose(jax.jit(single.score)(params, {}, alone)["nll"], nll(packed, 2), rtol=1e-5)


def test_a_place_beyond_the_images_is_not_silent():
    words, image = jnp.zeros((1, 3, 2)), jnp.arange(4.0).reshape(1, 2, 2)
    found = np.asarray(merged(words, image, jnp.array([[-1, 1, 2]])))[0]
    assert found[:2].tolist() == [[0, 0], [2, 3]] and np.isnan(found[2]).all()


# Writing.


@pytest.mark.parametrize("name", ["opt", "t5", "llama", "instruct"])
def test_it_goes_on_from_image_and_prompt_as_it_was_trained(name):
    """The likeliest first token after a prompt is that of a training row which ends there, however they are padded."""
    system, params, batch = built(name)
    lengths = np.array([1, 2, 3, 4, 4, 3, 2, 1])
    place = np.arange(4)
    prompt_valid = (place >= 4 - lengths[:, None]).astype(np.int32)
    tokens = np.random.default_rng(3).integers(3, 30, (8, 4))
    prompt = np.where(prompt_valid == 1, tokens, 0).astype(np.int32)
    given = {**batch, "prompt": prompt, "prompt_valid": prompt_valid}
    written = jax.jit(system.prompted)(params, {}, given)
    assert written.inputs.shape == (8, 7, 16) and written.valid.sum(axis=1).tolist() == (lengths + 3).tolist()
    module, variables = system.decoder_module(), system.decoder_params(params)
    found = generate(module, variables, Prompt(written.inputs, written.valid), Generation(max_new_tokens=2)).tokens

    right = [tokens[row, 4 - n :] for row, n in enumerate(lengths)]
    names = ("inputs", "input_segments") if isinstance(system.text, TextToText) else ("text", "segments")
    trained = {name: np.zeros_like(batch[name]) for name in names}
    for row, ids in enumerate(right):
        trained[names[0]][row, : len(ids)], trained[names[1]][row, : len(ids)] = ids, 1
    full = {**batch, **trained}
    if isinstance(system.text, TextToText):
        full["targets"] = np.zeros_like(batch["targets"])
    hidden, _, _ = system._read(params, {}, full)
    logits = np.asarray(module.apply(variables, hidden, method="logits"))
    last = np.zeros(8, int) if isinstance(system.text, TextToText) else 3 + lengths - 1
    assert [row[0] for row in found] == [int(logits[i, p].argmax()) for i, p in enumerate(last)]


def test_a_prompt_with_places_keeps_them():
    system, params, batch = built("llava")
    prompt = batch["text"][:, :10]
    given = {"image": batch["image"], "places": batch["places"][:, :10], "prompt": prompt}
    found = system.prompted(params, {}, {**given, "prompt_valid": np.ones_like(prompt)})
    image, _ = system._image(params, {}, batch)
    words = system.decoder_module().apply(system.decoder_params(params), prompt, method="embed")
    np.testing.assert_array_equal(found.inputs, merged(words, image, given["places"]))
    assert found.context is None and (found.valid == 1).all()


# What trains.


@every
def test_locked_parts_have_no_gradient_and_the_others_do(name):
    system, params, batch = built(name)
    gradient = jax.jit(jax.grad(lambda p: system.loss(p, {}, batch, jax.random.key(0))[0]))(params)
    for part, tree in gradient.items():
        moves = any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree))
        if part == "text" and "text" in system.lock:
            continue  # the gradient passes through it; the trainer asks for none of its own, below
        assert moves == (part not in system.lock), part
    assert system.locked() == tuple(f"{part}/.*" for part in system.lock)


def flops(lock):
    """Of loss and gradients of what trains, compiled without loops."""
    decoder = dataclasses.replace(DECODERS["opt"], width=64, mlp=256, depth=4, unroll=4)
    system = stage_2("opt", text=Causal(decoder, 8), lock=lock)
    params, _ = jax.eval_shape(system.init, jax.random.key(0), tiny_blip2.batch(system))
    params = unboxed(params)
    trains = {part: tree for part, tree in params.items() if part not in lock}
    frozen = {part: tree for part, tree in params.items() if part in lock}
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tiny_blip2.batch(system))

    def step(trains, frozen, batch):
        return jax.grad(lambda t: system.loss({**t, **frozen}, {}, batch, jax.random.key(0))[0])(trains)

    cost = jax.jit(step).lower(trains, frozen, batch).compile().cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]


def test_no_gradient_of_a_frozen_language_model_is_computed():
    # Of the three products of a layer in forward and backward pass, that for its own gradient falls away.
    assert flops(("image", "text")) < 0.75 * flops(("image",))
    assert flops(("image", "connector", "text")) < flops(("image", "text")) < flops(("text",))


def test_a_frozen_language_model_behind_what_trains_costs_two_forward_passes():
    def passes(name):
        return on_devices(tiny_blip2.experiment(SYSTEMS[name]), ONE, lambda run: run.passes())

    assert passes("opt") == {"image encoder": 1, "connector": 3, "projection": 3, "language model": 2}
    assert passes("minigpt4") == {"image encoder": 1, "connector": 1, "projection": 3, "language model": 2}
    assert passes("llava") == {"image encoder": 1, "projection": 3, "language model": 3}


def train(run, steps=3):
    state, losses = run.init(), []
    before = tiny.copied(state)
    for step in range(steps):
        batch = jax.device_put(tiny_blip2.batch(run.experiment.system, 16, seed=step), run.batch_sharding)
        state, metrics = run.step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, before, tiny.copied(state)


@functools.cache
def one_device(name):
    return on_devices(tiny_blip2.experiment(SYSTEMS[name]), ONE, train)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        pytest.param("opt", EIGHT, id="opt 2 x 2 x 2"),
        pytest.param("opt", Mesh(data=1, fsdp=8), id="opt fsdp=8", marks=pytest.mark.slow),
        pytest.param("t5", EIGHT, id="t5 2 x 2 x 2", marks=pytest.mark.slow),
        pytest.param("llava", EIGHT, id="llava 2 x 2 x 2", marks=pytest.mark.slow),
    ],
)
def test_the_losses_are_the_same_on_every_mesh(name, mesh):
    found, _, _ = on_devices(tiny_blip2.experiment(SYSTEMS[name]), mesh, train)
    np.testing.assert_allclose(found, one_device(name)[0], rtol=1e-5)


@pytest.mark.parametrize("name", ["opt", "t5", "minigpt4"])
def test_frozen_parts_are_bit_equal_after_training_and_have_no_state(name):
    _, before, state = one_device(name)
    system = SYSTEMS[name]
    assert set(state.frozen) == set(system.lock) and not set(state.trainable) & set(system.lock)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before.frozen, state.frozen)))
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before.trainable, state.trainable)
    assert any(jax.tree.leaves(moved))
    kept = tiny_blip2.state_of(state.optimizer)
    assert "projection" in kept and not kept & set(system.lock)


def test_frozen_parts_are_stored_small():
    low = tiny_blip2.experiment(SYSTEMS["opt"], frozen_dtype="bfloat16")
    losses, _, state = on_devices(low, ONE, train)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.frozen)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.trainable)} == {"float32"}
    np.testing.assert_allclose(losses, one_device("opt")[0], rtol=0.02)


def test_layer_decay_of_an_unlocked_encoder_reaches_its_steps():
    """Adam's first step is the learning rate in every value: its size tells the rate of each layer."""
    vit = tiny.vit(depth=3)
    system = stage_2("opt", image=vit, lock=("text",))
    stem = r"image/(class_token|patch_embedding/.*|positions/.*|pre_norm/.*)"
    decay = LayerDecay("image/transformer/layers/.*", stem, 0.5)
    optimizer = Optimizer(AdamW(eps=1e-20, weight_decay=0.0), Constant(peak=0.01), layer_decay=(decay,))
    _, before, state = on_devices(tiny_blip2.experiment(system, optimizer=optimizer), ONE, lambda run: train(run, 1))
    moved = jax.tree.map(lambda a, b: np.abs(a - b), before.trainable, state.trainable)
    layers = moved["image"]["transformer"]["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_allclose([np.median(layer) for layer in layers], [0.01 * 0.5**k for k in (3, 2, 1)], rtol=1e-3)
    assert np.median(moved["image"]["patch_embedding"]["kernel"]) == pytest.approx(0.01 * 0.5**4, rel=1e-3)
    assert np.median(moved["projection"]["layer_0"]["kernel"]) == pytest.approx(0.01, rel=1e-3)


def test_dropout_is_for_training_and_not_for_locked_parts():
    dropping = dataclasses.replace(NO_TEXT, dropout=0.3)
    system, params, batch = built("opt")
    for lock, same in ((("image", "text"), False), (("image", "connector", "text"), True)):
        other = dataclasses.replace(system, connector=dropping, lock=lock)
        losses = [float(jax.jit(other.loss)(params, {}, batch, jax.random.key(i))[0]) for i in (0, 1)]
        assert (losses[0] == losses[1]) == same
        np.testing.assert_array_equal(other.score(params, {}, batch)["nll"], system.score(params, {}, batch)["nll"])


# Errors.


def test_what_cannot_be_is_refused_by_name():
    reading = dataclasses.replace(QFORMER, predicts=False)
    for changes, words in (
        ({"connector": dataclasses.replace(NO_TEXT, cross_width=8)}, r"system.connector.cross_width is 8, .* 16 wide"),
        ({"connector": QFORMER}, "predicts is True"),
        ({"connector": reading}, "text is True and system.instruction None"),
        ({"instruction": 4}, "system.instruction is 4; it needs system.connector with text=True"),
        ({"dtype": "float16"}, "float16"),
        ({"lock": ("image", "connector", "projection", "text")}, "nothing would train"),
        ({"lock": ("image", "connector"), "connector": None}, "has the parts image, projection, text"),
        ({"text": Causal(DECODERS["opt"], 14)}, r"system.text.length is 14, .* a row has 17, .*context is 16"),
        ({"layout": Placed(2), "connector": reading, "instruction": 4}, "one image"),
        ({"chunk": 0}, "chunk 0"),
    ):
        with pytest.raises(InputError, match=words):
            stage_2("opt", **changes)
    with pytest.raises(InputError, match="images is 0"):
        Placed(0)
    with pytest.raises(InputError, match=r"31 ids and the language model 30; set system.text.decoder.vocab"):
        SYSTEMS["opt"].check_tokenizer(tiny.TinyTokenizer(vocab_size=31))
    SYSTEMS["instruct"].check_instruction(tiny.TinyTokenizer(vocab_size=32))
    for tokenizer in (tiny.TinyTokenizer(vocab_size=33), tiny.TinyTokenizer(vocab_size=32, pad_id=1)):
        with pytest.raises(InputError, match="tokenizer of instructions has"):
            SYSTEMS["instruct"].check_instruction(tokenizer)
    with pytest.raises(InputError, match="instructions that nothing reads"):
        SYSTEMS["opt"].check_instruction(tiny.TinyTokenizer())


def test_flops_count_images_and_text():
    system = SYSTEMS["llava"]
    found = system.flops_per_example()
    assert found["image encoder"] == 2 * system.image.flops()
    assert found["projection"] == 2 * Projection(2).flops(4, 16, 16)
    assert found["language model"] == DECODERS["llama"].flops(16)
    assert SYSTEMS["opt"].flops_per_example()["language model"] == DECODERS["opt"].flops(11)
    assert SYSTEMS["t5"].flops_per_example()["language model"] == DECODERS["t5"].flops(6, 11)
    assert Before().length(8, 3) == 11 and Placed(2).length(16, 4) == 16
