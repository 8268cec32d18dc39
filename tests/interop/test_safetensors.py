from __future__ import annotations

import functools
import json

import jax
import ml_dtypes
import numpy as np
import pytest

from vlmax.errors import InputError
from vlmax.interop import safetensors, writing

ARRAYS = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.arange(5, dtype=np.float16),
    "brain": np.arange(5).astype(ml_dtypes.bfloat16),
    "one": np.asarray(3.0, np.float64),
    "none": np.zeros((0, 7), np.int64),
}


def sources(arrays):
    return {name: (array.shape, array.dtype, lambda array=array: array) for name, array in arrays.items()}


def test_written_and_read(tmp_path):
    safetensors.write(tmp_path / "a.safetensors", sources(ARRAYS))
    found = safetensors.read(tmp_path / "a.safetensors")
    for name, array in ARRAYS.items():
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name].values(), array)
    np.testing.assert_array_equal(found["w"].rows(1, 3), ARRAYS["w"][1:])


def test_the_library_reads_what_we_write(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    safetensors.write(tmp_path / "a.safetensors", sources(ARRAYS))
    found = library.load_file(tmp_path / "a.safetensors")
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("cut", [4, 30, -1, -7])
def test_a_truncated_file(cut, tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.write(path, sources(ARRAYS))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"a\.safetensors: .*fetch it anew"):
        safetensors.read(path)


def test_a_longer_file(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.write(path, sources(ARRAYS))
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(InputError, match="damaged"):
        safetensors.read(path)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}, "does not begin"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, "has 8 bytes"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "does not begin"),
        ({"dtype": "F32", "shape": [2]}, "data_offsets"),
        ("no object", "no whole safetensors file"),
    ],
)
def test_a_header_that_makes_no_sense(entry, reason, tmp_path):
    header = json.dumps({"w": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(InputError, match=reason):
        safetensors.read(tmp_path / "a.safetensors")


def sharded(folder):
    safetensors.write_sharded(folder, sources(ARRAYS), 40)
    return folder / "model.safetensors.index.json"


def test_an_index(tmp_path):
    index = sharded(tmp_path)
    assert set(safetensors.read_sharded(index)) == set(ARRAYS)
    assert len(set(safetensors.weight_map(index).values())) > 1


def test_every_process_makes_the_tensors_in_the_same_order(tmp_path, monkeypatch):
    asked: dict[int, list[str]] = {0: [], 1: []}
    for process, names in asked.items():
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)

        def values(name, names=names):
            names.append(name)  # where arrays lie on many hosts, all of them must take part in this
            return ARRAYS[name]

        tensors = {n: (array.shape, array.dtype, functools.partial(values, n)) for n, array in ARRAYS.items()}
        writing.write(tmp_path, tensors, 40)
    assert asked[0] == asked[1] and sorted(asked[0]) == sorted(ARRAYS)


def edited(index, change):
    found = json.loads(index.read_text())
    change(found["weight_map"])
    index.write_text(json.dumps(found))


def test_an_index_that_is_wrong(tmp_path):
    index = sharded(tmp_path)
    right = index.read_text()
    edited(index, lambda where: where.update(w="model-00009-of-00009.safetensors"))
    with pytest.raises(InputError, match="not beside it"):
        safetensors.read_sharded(index)
    index.write_text(right)
    edited(index, lambda where: where.update(w="../elsewhere.safetensors"))
    with pytest.raises(InputError, match="not beside it"):
        safetensors.read_sharded(index)
    index.write_text(right)
    edited(index, lambda where: where.update(w=where["one"]))
    with pytest.raises(InputError, match="holds w, which is not in it"):
        safetensors.read_sharded(index)
    index.write_text(right)
    edited(index, lambda where: where.pop("half"))
    with pytest.raises(InputError, match="the index does not name"):
        safetensors.read_sharded(index)
    index.write_text("{}")
    with pytest.raises(InputError, match="no index of weights"):
        safetensors.read_sharded(index)
