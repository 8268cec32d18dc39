"""A run's own model: loaded, exported, and what another run starts from."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

import vlmax
from tests import tiny, tiny_text
from tests.interop.models import random_arrays, same
from vlmax.data.sources.shapes_documents import ShapesText
from vlmax.data.tokenizers import TrainedBpe
from vlmax.errors import InputError
from vlmax.interop.converting import convert
from vlmax.interop.exporting import export
from vlmax.interop.loading import open_model
from vlmax.interop.model import by_path
from vlmax.interop.pretrained import Pretrained, plan
from vlmax.interop.trained import EXPERIMENT
from vlmax.models.encoders.vit import ViT
from vlmax.sharding.mesh import Mesh
from vlmax.training import record
from vlmax.training.checkpoints import Checkpointer
from vlmax.training.setup import device_context, prepare
from vlmax.training.state import params_of

MESH = Mesh(data=2, fsdp=4)


def fresh(experiment):
    """A state at step 0, and its abstract form."""
    with device_context(experiment) as mesh:
        run = prepare(experiment, mesh)
        return run.init(), run


def arrays_of(state):
    return by_path({"params": params_of(state), **state.carried})


def save(workdir, experiment, state):
    checkpointer = Checkpointer(workdir, experiment.checkpoints)
    record.write(workdir, record.record(experiment))
    checkpointer.save(3, state, {}, {})
    checkpointer.close()


@pytest.fixture(scope="module", params=["vit", "resnet"])
def trained(request, tmp_path_factory):
    """The directory of a run, and its state: half frozen, with a moving average."""
    system = tiny.clip() if request.param == "vit" else tiny.resnet_clip()
    if request.param == "resnet":
        system = dataclasses.replace(system, image=dataclasses.replace(system.image, stem=16))  # divides by 8 devices
    optimizer = dataclasses.replace(tiny.experiment().optimizer, frozen=("text/.*",))
    features = tiny.TinyFeatures(image=system.image.image)
    experiment = tiny.experiment(system=system, optimizer=optimizer, mesh=MESH, ema_decay=0.5)
    experiment = tiny.with_data(experiment, preprocess=features)
    workdir = tmp_path_factory.mktemp(request.param)
    state, _ = fresh(experiment)
    state = dataclasses.replace(state, ema=jax.tree.map(lambda x: x + 1, state.trainable))
    save(workdir, experiment, state)
    return workdir, experiment, state


def test_its_moving_average_is_its_model(trained):
    workdir, experiment, state = trained
    opened = open_model(workdir)
    assert opened.config == experiment.system
    wanted = arrays_of(dataclasses.replace(state, trainable=state.ema))
    same(opened.arrays(), wanted)
    same(opened.arrays(Mesh(data=1, fsdp=8).build()), wanted)
    assert opened.dtype() == np.float32  # the frozen text encoder's bfloat16 is of fewer arrays


def test_it_is_exported(trained, tmp_path):
    workdir, _, state = trained
    opened = open_model(workdir)
    export(tmp_path / "out", opened.config, opened.arrays(), form="open_clip")
    found = open_model(tmp_path / "out", changes={"dtype": "float32"})
    assert found.config == opened.config
    wanted = arrays_of(dataclasses.replace(state, trainable=state.ema))
    arrays = found.arrays()
    assert all(np.array_equal(arrays[path], np.asarray(array, np.float32)) for path, array in wanted.items())


def test_another_run_starts_from_it(trained):
    workdir, experiment, state = trained
    started = dataclasses.replace(experiment, seed=7, init=(Pretrained(str(workdir)),))
    found, run = fresh(started)
    wanted = dataclasses.replace(state, trainable=state.ema)
    same(arrays_of(found), arrays_of(wanted))
    same(by_path({"params": found.ema}), by_path({"params": state.ema}))
    assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, run.abstract_state)


@pytest.fixture(scope="module")
def image_encoder(tmp_path_factory):
    config = tiny.vit()
    folder = tmp_path_factory.mktemp("image") / "model"
    export(folder, config, random_arrays(config))
    return folder, random_arrays(config)


def start(**init):
    return fresh(tiny.experiment(mesh=MESH, init=(Pretrained(**init),)))[0]


def test_a_part_starts_from_an_encoder(image_encoder):
    folder, arrays = image_encoder
    found, before = arrays_of(start(path=str(folder), part="image")), arrays_of(fresh(tiny.experiment(mesh=MESH))[0])
    same({path.removeprefix("image/"): x for path, x in found.items() if path.startswith("image/")}, arrays)
    same(*({path: x for path, x in tree.items() if not path.startswith("image/")} for tree in (found, before)))


def test_a_part_of_a_checkpoint_is_taken(tmp_path):
    config = tiny.clip()
    export(tmp_path / "clip", config, random_arrays(config))
    found = arrays_of(start(path=str(tmp_path / "clip"), part="text", take="text"))
    wanted = {path: x for path, x in random_arrays(config).items() if path.startswith("text/")}
    same({path: x for path, x in found.items() if path.startswith("text/")}, wanted)


def test_a_decoder_is_padded_as_the_system_is(tmp_path):
    config = tiny_text.DECODERS["llama"]
    arrays = random_arrays(config)
    export(tmp_path / "model", dataclasses.replace(config, context=64), arrays)
    found, _ = fresh(tiny_text.experiment("llama", mesh=MESH, init=(Pretrained(str(tmp_path / "model")),)))
    same(arrays_of(found), arrays)
    export(tmp_path / "short", dataclasses.replace(config, context=8), arrays)
    with pytest.raises(InputError, match=r"LLaMA\.context is 16 in the system and 8 in the checkpoint"):
        fresh(tiny_text.experiment("llama", mesh=MESH, init=(Pretrained(str(tmp_path / "short")),)))


@dataclasses.dataclass(frozen=True)
class Two:
    """A system with two encoders of a kind."""

    left: ViT
    right: ViT


def test_of_two_encoders_that_of_the_part_counts(image_encoder):
    folder, arrays = image_encoder
    system = Two(dataclasses.replace(tiny.vit(), activation="quick_gelu"), tiny.vit())
    shapes = {f"{side}/{path}": array.shape for side in ("left", "right") for path, array in arrays.items()}
    assert plan(Pretrained(str(folder), part="right"), "init[0]", system, shapes).paths
    with pytest.raises(InputError, match=r"ViT\.activation is 'quick_gelu' in the system and 'gelu'"):
        plan(Pretrained(str(folder), part="left"), "init[0]", system, shapes)


def test_what_does_not_fit_is_refused(image_encoder, tmp_path):
    folder = str(image_encoder[0])
    with pytest.raises(InputError, match=r"init\[0\]\.part: nothing lies under 'img'; did you mean 'image"):
        start(path=folder, part="img")
    with pytest.raises(InputError, match=r"init\[0\]: reading .*nowhere: there is no such folder"):
        start(path=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="holds a ViT, and that part of the system has none"):
        start(path=folder, part="text")
    other = dataclasses.replace(tiny.vit(), activation="quick_gelu", heads=4)
    export(tmp_path / "other", other, random_arrays(other))
    with pytest.raises(InputError) as caught:
        start(path=str(tmp_path / "other"), part="image")
    for words in (
        "ViT.heads is 2 in the system and 4 in the checkpoint",
        "ViT.activation is 'gelu'",
        "query/kernel is",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("form", ["vlmax", "huggingface"])
def test_a_language_model_takes_its_tokenizer_along(name, form, tmp_path):
    tokenizer = TrainedBpe(ShapesText("train"), examples=20, vocab_size=300)
    system = tiny_text.system(name)
    decoder = dataclasses.replace(system.text.decoder, vocab=300)
    system = dataclasses.replace(system, text=dataclasses.replace(system.text, decoder=decoder))
    preprocess = dataclasses.replace(tiny_text.preprocess(name), tokenizer=tokenizer)
    experiment = tiny.with_data(tiny_text.experiment(name, mesh=MESH, system=system), preprocess=preprocess)
    save(tmp_path / "run", experiment, fresh(experiment)[0])
    list(convert(tmp_path / "run", tmp_path / "ours"))
    list(convert(tmp_path / ("run" if form == "vlmax" else "ours"), tmp_path / "out", "huggingface"))
    marks = {"bos_token_id": 298, "eos_token_id": 299, "pad_token_id": 297}
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert found == marks | ({"decoder_start_token_id": 297} if name == "t5" else {})
    (_, _, first), (_, _, second) = (vlmax.load(tmp_path / folder) for folder in ("run", "out"))
    assert first.encode("Two red circles!") == second.encode("Two red circles!")
    assert (second.bos, second.eos, second.pad_id) == (298, 299, 297)


def test_a_run_without_checkpoint(tmp_path):
    record.write(tmp_path, record.record(tiny.experiment()))
    assert (tmp_path / EXPERIMENT).is_file()
    with pytest.raises(InputError, match="no checkpoint yet"):
        open_model(tmp_path)
    with pytest.raises(InputError, match="remat cannot be changed"):
        open_model(tmp_path, changes={"remat": "full"})
