"""Models onto meshes, in the dtype that was asked for, and what `vlmax.load` gives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vlmax
from tests.interop.models import LANGUAGE, MODELS, random_arrays, same
from tests.tiny import batch
from vlmax.errors import InputError
from vlmax.interop import reading
from vlmax.interop.exporting import export, save
from vlmax.interop.families import of_config
from vlmax.interop.loading import open_model
from vlmax.interop.tensors import Stored
from vlmax.models.decoders.llama import LLaMA
from vlmax.sharding.mesh import Mesh

ON_MESHES = [
    "llama, grouped, tied, padded",
    "gpt2, padded",
    "t5 v1.1",
    "bert",
    "siglip",
    "clip resnet, open_clip layout",
]
MESHES = [Mesh(data=2, fsdp=4), Mesh(data=1, fsdp=2, tensor=2, sequence=2), Mesh(data=1, fsdp=4, tensor=2)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    _, config = MODELS["llama, grouped, tied, padded"]
    folder = tmp_path_factory.mktemp("llama") / "model"
    export(folder, config, random_arrays(config))
    return folder


@pytest.mark.parametrize("name", ON_MESHES)
@pytest.mark.parametrize("mesh", MESHES, ids=["data, fsdp", "fsdp, tensor, sequence", "fsdp, tensor"])
def test_sharded_arrays_hold_the_same(name, mesh, tmp_path, monkeypatch):
    for setting, size in (("PIECE_BYTES", 200), ("GROUP_BYTES", 300), ("ROWS", 3), ("COLUMNS", 5), ("KEEPING", ())):
        monkeypatch.setattr(reading, setting, size)  # so that small tensors, too, come in pieces, shard after shard
    form, config = MODELS[name]
    arrays = random_arrays(config)
    export(tmp_path / "model", config, arrays, form=form)
    changes = {"vocab_multiple": config.vocab_multiple} if hasattr(config, "vocab_multiple") else {}
    opened = open_model(tmp_path / "model", changes=changes)
    found = opened.arrays(mesh.build())
    same(found, arrays)
    wanted = opened.outline.shardings(mesh.build())
    assert all(array.sharding == wanted[path] for path, array in found.items())
    assert any(not array.sharding.is_fully_replicated for array in found.values())


@pytest.mark.parametrize(("keeping", "times"), [(("cpu",), 1), ((), 8)])
def test_what_is_filled_at_once_is_read_once(keeping, times, llama, monkeypatch):
    asked, rows = [], Stored.rows
    monkeypatch.setattr(Stored, "rows", lambda self, *ends: asked.append(self.offset) or rows(self, *ends))
    monkeypatch.setattr(reading, "KEEPING", keeping)
    monkeypatch.setattr(reading, "GROUP_BYTES", 1)
    path, mesh = "transformer/layers/mlp/up/kernel", Mesh(data=1, fsdp=8).build()
    opened = open_model(llama)
    sharding = opened.outline.shardings(mesh)[path]
    assert not sharding.is_fully_replicated
    opened.read({path: sharding})
    assert {asked.count(offset) for offset in asked} == {times}


def test_every_device_has_its_own_memory(llama):
    arrays = open_model(llama).arrays(Mesh(data=8).build())
    places = [shard.data.unsafe_buffer_pointer() for array in arrays.values() for shard in array.addressable_shards]
    assert len(set(places)) == len(places) == 8 * len(arrays)


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_of_ours_gives_the_same(name, tmp_path):
    _, config = MODELS[name]
    arrays = random_arrays(config)
    save(tmp_path / "ours", config, of_config(config), arrays)
    opened = open_model(tmp_path / "ours")
    assert opened.config == config
    same(opened.arrays(), arrays)


def test_a_folder_of_ours_is_padded_for_the_mesh_at_hand(tmp_path):
    config = LLaMA(**LANGUAGE)
    save(tmp_path / "ours", config, of_config(config), random_arrays(config))
    mesh = Mesh(data=1, tensor=4, fsdp=2).build()
    with pytest.raises(InputError, match=r"23 and does not divide by mesh\.tensor=4; the nearest size that does is 24"):
        open_model(tmp_path / "ours").arrays(mesh)
    found = open_model(tmp_path / "ours", changes={"vocab_multiple": 8}).arrays(mesh)
    assert found["vocabulary/embedding"].shape == (24, 16)
    assert not np.asarray(found["vocabulary/embedding"][23:]).any()
    assert not np.asarray(found["vocabulary/output"][:, 23:]).any()


@pytest.mark.parametrize(("dtype", "stored", "computing"), [(None, "float32", "float32"), ("bfloat16",) * 3])
def test_load(llama, dtype, stored, computing):
    model, params, tokenizer = vlmax.load(llama, dtype=dtype, vocab_multiple=8)
    assert tokenizer is None
    assert {array.dtype for array in jax.tree.leaves(params)} == {jnp.dtype(stored)}
    assert model.dtype == jnp.dtype(computing)
    logits = model.apply(params, model.apply(params, jnp.ones((1, 3), jnp.int32)).tokens, method="logits")
    assert logits.shape == (1, 3, 23)


def test_load_gives_a_system_for_clip(tmp_path):
    form, config = MODELS["clip"]
    export(tmp_path / "model", config, random_arrays(config), form=form)
    system, params, _ = vlmax.load(tmp_path / "model")
    pictures = batch(2, image=12)["image"]
    assert system.image_features(params["params"], {}, pictures).shape == (2, 12)


def test_half_precision_computes_in_bfloat16(tmp_path):
    _, config = MODELS["gpt2"]
    export(tmp_path / "model", config, random_arrays(config, dtype=np.float16))
    model, params, _ = vlmax.load(tmp_path / "model")
    assert model.dtype == jnp.bfloat16
    assert {array.dtype for array in jax.tree.leaves(params)} == {jnp.dtype(np.float16)}


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")  # JAX says it, too
def test_double_precision_computes_in_float32(tmp_path):
    _, config = MODELS["gpt2"]
    export(tmp_path / "model", config, random_arrays(config, dtype=np.float64))
    model, params, _ = vlmax.load(tmp_path / "model")
    assert model.dtype == jnp.float32
    assert {array.dtype for array in jax.tree.leaves(params)} == {jnp.dtype(np.float32)}


def test_wrong_arguments(llama):
    with pytest.raises(InputError, match="dtype is 'int8'; it must be float32, bfloat16"):
        vlmax.load(llama, dtype="int8")
    with pytest.raises(InputError, match="no field 'vocab_multiplier'; did you mean 'vocab_multiple'"):
        vlmax.load(llama, vocab_multiplier=2)
