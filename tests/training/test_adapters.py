"""A language model that learns through adapters, in a run that starts from the weights of another."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import vlmax
from tests import tiny, tiny_text
from vlmax.data.pipeline import Data, Weighted
from vlmax.data.sources.shapes_documents import ShapesText
from vlmax.data.texts import PackedText
from vlmax.data.tokenizers import TrainedBpe
from vlmax.errors import InputError
from vlmax.interop.loading import open_model
from vlmax.interop.pretrained import Pretrained
from vlmax.models.decoders.llama import LLaMA
from vlmax.models.lora import LoRA
from vlmax.systems.language_model import Causal, LanguageModel
from vlmax.training import patterns
from vlmax.training.checkpoints import Checkpointer
from vlmax.training.loop import train
from vlmax.training.setup import device_context, prepare
from vlmax.training.state import params_of

VOCAB, LENGTH = 264, 64
LORA = LoRA((r".*/attention/(query|value)", r".*/mlp/.*"), rank=2, alpha=6.0, dropout=0.1)
SOURCE = ShapesText(forms=("caption",))
TEXT = PackedText(TrainedBpe(SOURCE, examples=100, vocab_size=VOCAB), LENGTH, documents=2)
DECODER = LLaMA(width=16, depth=2, heads=2, kv_heads=2, mlp=24, vocab=VOCAB, context=LENGTH)
PLAIN = tiny_text.experiment(
    "llama",
    system=LanguageModel(Causal(DECODER, LENGTH), dtype="float32"),
    data=Data((Weighted(SOURCE),), TEXT, batch_size=16),
    steps=1,
    frozen_dtype="float32",
)


def adapted(start, **changes):
    system = dataclasses.replace(PLAIN.system, lora=LORA)
    return dataclasses.replace(PLAIN, system=system, init=(Pretrained(str(start)),), steps=10, **changes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The directories of a run and of one that goes on from it through adapters, and the latter's last state."""
    base, after = (tmp_path_factory.mktemp(name) / "run" for name in ("base", "adapted"))
    train(PLAIN, base)
    experiment = adapted(base)
    train(experiment, after)
    with device_context(experiment) as mesh:
        checkpointer = Checkpointer(after, experiment.checkpoints)
        step, state, _ = checkpointer.restore(prepare(experiment, mesh).abstract_state)
        checkpointer.close()
    assert step == 10
    return base, after, tiny.copied(state)


def test_the_base_is_bit_equal_to_what_it_started_from(runs):
    base, _, state = runs
    frozen = patterns.flatten(state.frozen)
    started = open_model(base).arrays()
    assert frozen.keys() == started.keys() | {f"{path}/lora/{n}" for path in kernels() for n in ("alpha", "dropout")}
    for path, array in started.items():
        assert np.asarray(array).tobytes() == frozen[path].tobytes(), path


def test_only_the_adapters_trained(runs):
    _, _, state = runs
    trained = patterns.flatten(state.trainable)
    assert trained.keys() == {f"{path}/lora/{side}" for path in kernels() for side in "ab"}
    assert all(leaf.any() for leaf in trained.values())  # b began as zeros


def kernels():
    attention, mlp = ("query", "value"), ("gate", "up", "down")
    names = [f"attention/{name}" for name in attention] + [f"mlp/{name}" for name in mlp]
    return [f"transformer/layers/{name}" for name in names]


def test_the_run_is_loaded_with_its_adapters_merged(runs):
    base, after, state = runs
    system = adapted(base).system
    batch = {name: np.ones((4, LENGTH), np.int32) for name in system.inputs()}
    batch["tokens"] = np.random.default_rng(0).integers(0, VOCAB, (4, LENGTH)).astype(np.int32)
    _, params, _ = vlmax.load(after)
    _, old, _ = vlmax.load(base)

    @jax.jit
    def logits(params):
        inputs, options = system.text.call(batch)
        out = DECODER.build().apply({"params": params}, *inputs, **options)
        return DECODER.build().apply({"params": params}, out.tokens, method="logits")

    want, merged, before = (np.asarray(logits(p)) for p in (params_of(state), params["params"], old["params"]))
    assert np.abs(merged - want).max() <= 1e-5 * np.abs(want).max()
    assert np.abs(before - want).max() > 1e-2 * np.abs(want).max()


def test_a_run_of_adapters_is_where_the_next_one_starts(runs):
    _, after, _ = runs
    again = dataclasses.replace(PLAIN, init=(Pretrained(str(after)),), steps=1)
    with device_context(again) as mesh:
        state = prepare(again, mesh).init()
    merged = open_model(after).arrays()
    for path, leaf in patterns.flatten(state.trainable).items():
        np.testing.assert_array_equal(leaf, merged[path], err_msg=path)


def test_adapters_alone_may_be_missing_in_a_checkpoint(runs):
    base, *_ = runs
    biased = dataclasses.replace(DECODER, qkv_bias=True)
    wrong = dataclasses.replace(adapted(base), system=LanguageModel(Causal(biased, LENGTH), dtype="float32", lora=LORA))
    with device_context(wrong) as mesh, pytest.raises(InputError) as error:
        prepare(wrong, mesh).init()
    assert "transformer/layers/attention/query/bias" in str(error.value) and "/lora/" not in str(error.value)


def test_a_step_costs_the_base_two_forward_passes_and_its_adapters_three(runs):
    base, *_ = runs
    experiment = adapted(base)
    with device_context(experiment) as mesh:
        found = prepare(experiment, mesh).passes()
    layer = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16
    own = 2 * layer + 16 + 16 * VOCAB  # layers, norm and head; the embeddings are looked up
    sides = 2 * (16 + 16) + 3 * (16 + 24)
    numbers = 5 * 2  # alpha and dropout of the projections of a layer
    assert found == {"language model": pytest.approx(2 + (3 * 2 * 2 * sides + 2 * 2 * numbers) / own)}
    with device_context(PLAIN) as mesh:
        assert prepare(PLAIN, mesh).passes() == {"language model": 3}
