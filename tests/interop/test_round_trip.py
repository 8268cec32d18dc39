"""Out and in again: the same configuration and the same bits, for every family."""

from __future__ import annotations

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from tests.interop.models import MODELS, random_arrays, same
from vlmax.interop.checkpoint import tensors_of
from vlmax.interop.exporting import export
from vlmax.interop.loading import open_model

PADDING = {"vocab_multiple"}  # is ours alone; no foreign file knows it


def changes(config):
    return {name: getattr(config, name) for name in PADDING if hasattr(config, name)}


@pytest.mark.parametrize("name", MODELS)
def test_bits_and_configuration(name, tmp_path):
    form, config = MODELS[name]
    arrays = random_arrays(config)
    export(tmp_path / "first", config, arrays, form=form)
    opened = open_model(tmp_path / "first", changes=changes(config))
    assert opened.config == dataclasses.replace(config, **({"dtype": "bfloat16"} if hasattr(config, "dtype") else {}))
    assert all("mask_token" in note for note in opened.notes)  # zeros, which we wrote
    found = opened.arrays()
    same(found, arrays)

    export(tmp_path / "second", opened.config, found, files=opened.files, form=form)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "second").iterdir())
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_stays_as_it_is(dtype, tmp_path):
    form, config = MODELS["llama"]
    arrays = random_arrays(config, dtype=dtype)
    export(tmp_path / "model", config, arrays, form=form)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == np.dtype(dtype).name
    same(open_model(tmp_path / "model").arrays(), arrays)


def test_of_two_precisions_the_configuration_names_the_wider(tmp_path):
    form, config = MODELS["llama"]
    arrays = random_arrays(config, dtype=ml_dtypes.bfloat16)
    arrays["vocabulary/output"] = arrays["vocabulary/output"].astype(np.float32)
    export(tmp_path / "model", config, arrays, form=form)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "float32"
    same(open_model(tmp_path / "model").arrays(), arrays)


def test_several_files(tmp_path):
    _, config = MODELS["llama"]
    arrays = random_arrays(config)
    export(tmp_path / "many", config, arrays, shard_bytes=4000)
    export(tmp_path / "one", config, arrays)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 3
    assert all((tmp_path / "many" / file).stat().st_size < 4000 + 4000 for file in files)
    many = tensors_of(tmp_path / "many" / "model.safetensors.index.json")
    one = tensors_of(tmp_path / "one" / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(4 * tensor.size for tensor in one.values())
    assert {n: t.values().tobytes() for n, t in many.items()} == {n: t.values().tobytes() for n, t in one.items()}
    same(open_model(tmp_path / "many").arrays(), arrays)
