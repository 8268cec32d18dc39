"""BLIP's fine-tunings start from its pretraining: every weight in its place, and what is missing is told."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests import tiny_blip
from tests.shared import REPOSITORY
from tests.training.test_step import ONE, on_devices
from vlmax.command_line import load_experiment
from vlmax.errors import InputError
from vlmax.interop.pretrained import Pretrained
from vlmax.interop.trained import open_run
from vlmax.systems.blip_caption import BLIPCaption
from vlmax.systems.blip_nlvr2 import BLIPNLVR2
from vlmax.systems.blip_retrieval import BLIPRetrieval
from vlmax.systems.blip_vqa import BLIPVQA
from vlmax.training import patterns
from vlmax.training.loop import train

FILE = REPOSITORY / "tests" / "end_to_end" / "tiny_blip.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a pretraining of five steps, its system and its parameters by path."""
    experiment = dataclasses.replace(load_experiment(str(FILE)), steps=5)
    folder = tmp_path_factory.mktemp("stages") / "run"
    train(experiment, folder)
    opened = open_run(folder)
    return folder, experiment.system, {path: np.asarray(x) for path, x in opened.arrays().items()}


def started(system, *init):
    """Parameters by path of an experiment that starts so."""

    def work(run):
        state = run.init()
        return {path: np.asarray(x) for path, x in patterns.flatten(state.trainable).items()}

    experiment = tiny_blip.experiment("caption", system=system, init=init)
    return on_devices(experiment, ONE, work)


def papers(name: str, run, **changes) -> tuple[Pretrained, ...]:
    """What the paper's experiment says, of this run."""
    init = load_experiment(str(REPOSITORY / "experiments" / f"blip_{name}.py")).init
    return tuple(dataclasses.replace(one, path=str(run), **changes) for one in init)


def of_decoder(path: str) -> str:
    """Where pretraining has a parameter of the decoder, which shares all but self-attention and head."""
    own = path.startswith(("transformer/layers/attention", "head_", "output_bias"))
    return f"decoder/{path}" if own else f"text/{path}"


@pytest.mark.parametrize("resized", [False, True], ids=["images of 32", "images of 48"])
def test_a_captioner_starts_with_the_whole_decoder(run, resized):
    folder, before, weights = run
    image = dataclasses.replace(before.model.image, image=48 if resized else 32)
    system = BLIPCaption(model=dataclasses.replace(before.model, image=image), length=16)
    found = started(system, *papers("caption_coco", folder))
    assert len(found) > 30
    for path, array in found.items():
        part, _, rest = path.partition("/")
        theirs = weights[path if part == "image" else of_decoder(rest)]
        if resized and path == "image/positions/embedding":
            assert array.shape == (37, 32) and theirs.shape == (17, 32)
            np.testing.assert_array_equal(array[0], theirs[0])
        else:
            np.testing.assert_array_equal(array, theirs)


def test_retrieval_starts_with_all_but_the_decoder_and_its_twins_with_what_was_loaded(run):
    folder, before, weights = run
    alignment = dataclasses.replace(before.alignment, floor=0.0)
    system = BLIPRetrieval(model=before.model, alignment=alignment, length=16)
    experiment = tiny_blip.experiment("retrieval", system=system, init=papers("retrieval_coco", folder))

    def work(run):
        state = run.init()
        found = {path: np.asarray(x) for path, x in patterns.flatten(state.trainable).items()}
        rng = np.random.default_rng(0)
        batch = {name: np.zeros((16, *x.shape), x.dtype) for name, x in system.inputs().items()}
        batch["image"] = rng.integers(0, 256, batch["image"].shape, np.uint8)
        batch["group"] = np.arange(16, dtype=np.int32)
        batch["text"][:] = rng.integers(0, 200, batch["text"].shape)
        state, metrics = run.step(state, jax.device_put(batch, run.batch_sharding))
        return found, jax.device_get(state.carried), float(metrics["loss"])

    found, carried, loss = on_devices(experiment, ONE, work)
    assert np.isfinite(loss) and set(found) == {path for path in weights if not path.startswith("decoder/")}
    for path, array in found.items():
        np.testing.assert_array_equal(array, weights[path])
    for path, array in patterns.flatten(carried["momentum"]).items():
        np.testing.assert_array_equal(array, weights[path])


def test_answering_starts_with_both(run):
    folder, before, weights = run
    model = dataclasses.replace(before.model, image=dataclasses.replace(before.model.image, image=32))
    system = BLIPVQA(model=model, length=16, answers=2, answer_length=8)
    found = started(system, *papers("vqa", folder))
    for path, array in found.items():
        part, _, rest = path.partition("/")
        np.testing.assert_array_equal(array, weights[of_decoder(rest) if part == "decoder" else path])


def test_two_images_start_with_the_cross_attention_twice(run):
    folder, before, weights = run
    system = BLIPNLVR2(model=before.model, length=16)
    init = (
        Pretrained(str(folder), "image", take="image"),
        Pretrained(
            str(folder),
            "text",
            take="text",
            copies=(
                (r"layers/cross_attention_[01]/(.*)", r"transformer/layers/cross_attention/\1"),
                (r"layers/(.*)", r"transformer/layers/\1"),
            ),
            fresh=("merge_.*",),
        ),
    )
    found = started(system, *init)
    for name in ("0", "1"):
        path = "cross_attention_%s/query/kernel"
        np.testing.assert_array_equal(
            found[f"text/layers/{path % name}"], weights["text/transformer/layers/cross_attention/query/kernel"]
        )
    np.testing.assert_array_equal(found["text/vocabulary/embedding"], weights["text/vocabulary/embedding"])


def test_a_checkpoint_of_another_stage_says_which_it_is_and_what_is_missing(run):
    folder, before, _ = run
    system = BLIPCaption(model=before.model, length=16)
    with pytest.raises(InputError) as error:
        started(system, Pretrained(str(folder)))
    told = str(error.value)
    assert "the run 'tiny_blip' at step 5, whose system is BLIP" in told
    assert "is not in the checkpoint" in told and "decoder/vocabulary/embedding" in told
    assert " more" in told  # what is missing comes first, then what the system has no place for
    heads = dataclasses.replace(before.model, text=dataclasses.replace(before.model.text, heads=2))
    with pytest.raises(InputError, match="heads is 2 in the system and 4 in the checkpoint"):
        started(BLIPCaption(model=heads, length=16), *papers("caption_coco", folder, resize=()))
