"""A run's system as its newest checkpoint left it."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests import tiny
from tests.interop.test_trained import MESH, fresh, save
from vlmax.data.cleaning import CleanCaption, Cleaned
from vlmax.data.images import CentreCrop, ImageTransform, Squash
from vlmax.data.pipeline import Weighted
from vlmax.data.preprocess import ImageText
from vlmax.data.sources.shapes import Shapes
from vlmax.data.tokenizers import TrainedBpe
from vlmax.errors import InputError
from vlmax.evaluation.captioning import Captioning
from vlmax.evaluation.prompting import Prompting
from vlmax.training.restored import restore
from vlmax.training.setup import device_context
from vlmax.training.state import params_for_evaluation

TOKENIZER = TrainedBpe(Shapes(), examples=100, vocab_size=300)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with frozen parts, a moving average, batch statistics and an evaluation of captions."""
    preprocess = ImageText(ImageTransform(Squash(32)), TOKENIZER, length=tiny.CONTEXT)
    system = tiny.resnet_clip(text=tiny.text(vocab=304))
    system = dataclasses.replace(system, image=dataclasses.replace(system.image, stem=16))  # divides by the mesh
    optimizer = dataclasses.replace(tiny.experiment().optimizer, frozen=("text/.*",))
    experiment = tiny.experiment(
        system=system, optimizer=optimizer, mesh=MESH, ema_decay=0.5, evaluation_image=ImageTransform(CentreCrop(32))
    )
    sources = (Weighted(Cleaned(Shapes(), CleanCaption(7))),)
    experiment = tiny.with_data(experiment, preprocess=preprocess, sources=sources)
    state, _ = fresh(experiment)
    state = dataclasses.replace(state, ema=jax.tree.map(lambda x: x + 1, state.trainable))
    captions = Captioning(Shapes(), Prompting(TOKENIZER, begin="a"), prompt="a picture of")
    workdir = tmp_path_factory.mktemp("run")
    save(workdir, dataclasses.replace(experiment, evaluations=(captions,)), state)
    return workdir, experiment, state


def test_all_that_writing_and_judging_needs_is_there(run):
    workdir, experiment, state = run
    with device_context(experiment) as mesh:
        found = restore(workdir, mesh)
    assert (found.system, found.preprocess, found.image) == (
        experiment.system, experiment.data.preprocess, experiment.evaluation_image
    )  # fmt: skip
    assert found.step == 3 and found.clean == CleanCaption(7) and found.prompts["prompt"] == "a picture of"
    assert found.prompts["prompting"] == Prompting(TOKENIZER, begin="a")
    for ours, theirs in [(found.params, params_for_evaluation(state)), (found.carried, state.carried)]:
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert a.dtype == b.dtype and np.array_equal(a, b)
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


def test_mistakes(run, tmp_path):
    workdir, experiment, _ = run
    with device_context(experiment) as mesh:
        with pytest.raises(InputError, match="it is no run's directory"):
            restore(tmp_path, mesh)
        text = (workdir / "experiment.json").read_text()
        (tmp_path / "experiment.json").write_text(text)
        with pytest.raises(InputError, match="has no checkpoint yet"):
            restore(tmp_path, mesh)
        (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
        assert '"embed": 8' in text
        (tmp_path / "experiment.json").write_text(text.replace('"vocab": 304', '"vocab": 320'))
        with pytest.raises(InputError, match=r"restore the experiment.json that the run was started with"):
            restore(tmp_path, mesh)
