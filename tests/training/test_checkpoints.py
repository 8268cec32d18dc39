"""Checkpoints: kept, restored elsewhere, damaged, of another model, of a newer format, on a full disk."""

from __future__ import annotations

import collections
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vlmax.errors import InputError
from vlmax.experiment import Checkpoints
from vlmax.sharding.mesh import Mesh
from vlmax.training import checkpoints
from vlmax.training.checkpoints import FORMAT, Checkpointer, SaveFailed
from vlmax.training.state import TrainState, state_bytes, zero

DATA = {"step": 1, "seed": 0, "order": "[]"}


def state(value: float, spec: PartitionSpec | None = None, width: int = 8) -> TrainState:
    """A small state full of one number, its matrix sharded by `spec`."""
    sharding = NamedSharding(Mesh(data=2, fsdp=2, tensor=2).build(), PartitionSpec() if spec is None else spec)
    kernel = jax.device_put(jnp.full((width, 4), value), sharding)
    trainable = {"dense": {"kernel": kernel, "bias": jnp.full(4, value)}}
    frozen = {"image": {"kernel": jnp.full(4, value, jnp.bfloat16)}}
    ema = jax.tree.map(lambda x: x + 1, trainable)
    optimizer = optax.adam(0.1).init(trainable)
    return TrainState(zero() + int(value), trainable, frozen, optimizer, {"calls": zero()}, ema, zero(), zero())


def abstract(like: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)


def same(a: TrainState, b: TrainState) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def said():
    return []


@pytest.fixture
def saved(tmp_path, said):
    """A directory with checkpoints 1, 2 and 3, each full of its step; open for more."""
    checkpointer = Checkpointer(tmp_path, Checkpoints(keep_last=3), said.append)
    for step in (1, 2, 3):
        checkpointer.save(step, state(step), {**DATA, "step": step}, {"name": "tiny"})
    checkpointer.wait()
    yield checkpointer
    checkpointer.close()


def test_a_fresh_directory_has_nothing_to_restore(tmp_path):
    checkpointer = Checkpointer(tmp_path, Checkpoints())
    assert checkpointer.steps() == [] and checkpointer.restore(abstract(state(1))) is None
    checkpointer.close()


def test_the_newest_comes_back_whole_and_laid_out_as_asked(saved):
    step, restored, data = saved.restore(abstract(state(0, PartitionSpec("fsdp", "tensor"))))
    assert step == 3
    same(restored, state(3))
    assert restored.trainable["dense"]["kernel"].sharding.spec == PartitionSpec("fsdp", "tensor")
    assert data == {**DATA, "step": 3, "format": FORMAT}
    experiment = json.loads((saved.directory / "3" / "experiment" / "metadata").read_text())
    assert experiment == {"name": "tiny"}


def test_the_last_and_every_so_many_are_kept(tmp_path):
    checkpointer = Checkpointer(tmp_path, Checkpoints(keep_last=1, keep_every=2))
    for step in (1, 2, 3):
        checkpointer.save(step, state(step), DATA, {})
        checkpointer.wait()
    checkpointer.save(3, state(9), DATA, {})  # is there already
    assert checkpointer.steps() == [2, 3]
    same(checkpointer.restore(abstract(state(0)))[1], state(3))
    checkpointer.close()


@pytest.mark.parametrize("how", ["truncated", "item missing", "data damaged"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(saved, said, how):
    folder = saved.directory / "3"
    if how == "truncated":
        largest = max((f for f in (folder / "state").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
        for file in (folder / "state").rglob("*"):
            if file.is_file() and file.stat().st_size > largest.stat().st_size // 2:
                file.write_bytes(file.read_bytes()[:10])
    elif how == "item missing":
        shutil.rmtree(folder / "state")
    else:
        (folder / "data" / "metadata").write_text("{")
    step, restored, _ = saved.restore(abstract(state(0)))
    assert step == 2
    same(restored, state(2))
    assert len(said) == 1 and "checkpoint 3 is damaged" in said[0] and "taking the one before it" in said[0]
    assert saved.steps() == [1, 2] and (saved.directory / "damaged-3").is_dir()
    saved.save(3, state(3), DATA, {})  # the step can be saved again
    saved.wait()
    assert saved.steps() == [1, 2, 3]


def test_all_damaged_is_an_error_and_not_a_fresh_start(saved):
    for step in saved.steps():
        shutil.rmtree(saved.directory / str(step) / "state")
    with pytest.raises(InputError, match=r"every checkpoint in .* is damaged: \[1, 2, 3\].*another --workdir"):
        saved.restore(abstract(state(0)))


def test_a_checkpoint_of_another_model_is_told_and_not_set_aside(saved):
    with pytest.raises(InputError) as error:
        saved.restore(abstract(state(0, width=16)))
    assert "trainable/dense/kernel: stored (8, 4), wanted (16, 4)" in str(error.value)
    assert saved.steps() == [1, 2, 3]
    other = state(0)
    other = dataclasses.replace(other, trainable={**other.trainable, "head": jnp.zeros(3)})
    with pytest.raises(InputError, match=r"trainable/head: stored nothing, wanted \(3,\)"):
        saved.restore(abstract(other))
    fewer = dataclasses.replace(state(0), ema={})
    with pytest.raises(InputError, match=r"ema/dense/kernel: stored \(8, 4\), wanted nothing"):
        saved.restore(abstract(fewer))
    assert saved.steps() == [1, 2, 3]


def test_a_newer_format_is_told_and_not_set_aside(saved):
    file = saved.directory / "3" / "data" / "metadata"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": FORMAT + 1}))
    with pytest.raises(InputError, match=rf"has format {FORMAT + 1}, and this vlmax reads up to {FORMAT}"):
        saved.restore(abstract(state(0)))
    assert saved.steps() == [1, 2, 3]


def test_what_a_killed_save_left_is_removed_at_the_next_start(saved):
    saved.close()
    half = saved.directory / "4.orbax-checkpoint-tmp-1"
    shutil.copytree(saved.directory / "3", half)
    again = Checkpointer(saved.directory.parent, Checkpoints(keep_last=3))
    assert again.steps() == [1, 2, 3]
    assert again.restore(abstract(state(0)))[0] == 3
    assert not half.exists()
    again.close()


def test_a_full_disk_is_told_before_anything_is_written(saved, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage(0, 0, state_bytes(state(4)) - 1))
    with pytest.raises(SaveFailed, match=r"GB are free; make room.*the newest whole checkpoint is 3"):
        saved.save(4, state(4), DATA, {})
    assert saved.steps() == [1, 2, 3]
    same(saved.restore(abstract(state(0)))[1], state(3))


def test_a_save_that_fails_in_the_background_surfaces(saved, monkeypatch):
    def fail():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved._manager, "check_for_errors", fail)
    with pytest.raises(SaveFailed, match=r"No space left on device; make room.* \(the newest whole checkpoint is 3\)"):
        saved.check_errors()
