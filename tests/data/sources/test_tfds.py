import io
import json
import os
import pickle
import subprocess
import sys

import fsspec
import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.sources import makers
from vlmax.data import tf_examples
from vlmax.data.sources.tfds import TFDS
from vlmax.errors import InputError

DESCRIBED = {
    "image": tfds.features.Image(),
    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
    "captions": tfds.features.Sequence({"text": tfds.features.Text(), "id": np.int64}),
    "score": np.float32,
}


def write_set(folder, features, records, name="pets", split="train", shards=2):
    """A TFDS data set as TFDS itself describes it."""
    folder.mkdir(parents=True)
    tfds.features.FeaturesDict(features).save_config(str(folder))
    lengths = []
    for i in range(shards):
        part = records[i * len(records) // shards : (i + 1) * len(records) // shards]
        makers.write_array_record(folder / f"{name}-{split}.array_record-{i:05d}-of-{shards:05d}", part)
        lengths.append(str(len(part)))
    split = {"name": split, "shardLengths": lengths, "numBytes": "1",
             "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}  # fmt: skip
    info = {"name": name, "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.fixture
def pets(tmp_path):
    features, records = tfds.features.FeaturesDict(DESCRIBED), []
    for i, image in enumerate(makers.pictures(8)):
        captions = [{"text": f"a {i}", "id": i}, {"text": "b é", "id": 0}]
        value = {"image": io.BytesIO(image), "label": i % 2, "captions": captions, "score": i / 4}
        records.append(features.serialize_example(value))
    return write_set(tmp_path / "data" / "pets" / "1.0.0", DESCRIBED, records)


SOURCE = {"texts": ("captions/text", "label"), "key": None}


@pytest.mark.parametrize("how", ["folder", "name", "memory"])
def test_a_set_of_tfds_by_folder_name_and_object_store(pets, how):
    source = {
        "folder": TFDS(str(pets), **SOURCE),
        "name": TFDS("pets", data_dir=str(pets.parents[1]), **SOURCE),
        "memory": TFDS(f"memory://sets{pets}", **SOURCE),
    }[how]
    if how == "memory":
        for file in pets.iterdir():
            with fsspec.open(f"memory://sets{pets}/{file.name}", "wb") as out:
                out.write(file.read_bytes())
    reader = pickle.loads(pickle.dumps(source.open()))
    assert len(reader) == 8
    for i, image in enumerate(makers.pictures(8)):
        example = reader[i]
        assert example.image == image
        assert example.texts == (f"a {i}", "b é", ("cat", "dog")[i % 2])
        assert example.fields == {"captions/id": [i, 0], "score": i / 4}
    assert reader[5].key == "pets-train.array_record-00001-of-00002:1"


def test_splits_are_cut_as_tfds_cuts_them(pets):
    reader = TFDS(str(pets), split="train[3:-2]", **SOURCE).open()
    assert [reader[i].texts[0] for i in range(len(reader))] == ["a 3", "a 4", "a 5"]
    assert len(TFDS(str(pets), split="train[:50%]+train[75%:]", **SOURCE).open()) == 6


def test_what_vlmax_writes_tfds_reads_and_both_agree(tmp_path):
    given = makers.examples(6)
    records, kinds = makers.serialized(given)
    folder = write_set(tmp_path / "set", dict(tf_examples.features(kinds)), records)
    reader = TFDS(str(folder)).open()
    assert [reader[i] for i in range(6)] == given
    theirs = tfds.builder_from_directory(str(folder)).as_data_source("train")
    for i, example in enumerate(given):
        assert theirs[i]["key"].decode() == example.key and [t.decode() for t in theirs[i]["texts"]] == list(
            example.texts
        )
        assert theirs[i]["image"].shape[2] == 3 and theirs[i]["score"] == example.fields["score"]
        assert theirs[i]["label"] == i and json.loads(theirs[i]["other"]) == example.fields["other"]


def test_neither_tensorflow_nor_jax_is_imported(pets):
    script = (
        "import sys\nfrom vlmax.data.sources.open import open_source\n"
        f"reader = open_source({str(pets)!r}, texts=('captions/text',), key=None).open()\n"
        "assert len([reader[i] for i in range(len(reader))]) == 8\n"
        "print([m for m in ('tensorflow', 'jax', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | {"VLMAX_CACHE": "/x"}
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_mistakes_in_the_source_are_errors(pets, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "dataset_info.json").write_text("{ not json")
    old = json.loads((pets / "dataset_info.json").read_text()) | {"fileFormat": "tfrecord"}
    tfrecord = tmp_path / "tfrecord"
    tfrecord.mkdir()
    (tfrecord / "dataset_info.json").write_text(json.dumps(old))
    (tfrecord / "features.json").write_text((pets / "features.json").read_text())
    for source, problem, field in [
        (TFDS("no_such_set", data_dir=str(tmp_path)), "no TFDS data set", "dataset"),
        (TFDS(str(tmp_path)), "no dataset_info.json", "dataset"),
        (TFDS("memory://nothing/here"), "no dataset_info.json", "dataset"),
        (TFDS(str(damaged)), "cannot be read", "dataset"),
        (TFDS(str(tfrecord)), "tfrecord, which has no random access", "dataset"),
        (TFDS(str(pets), split="trian", **SOURCE), "did you mean 'train'", "split"),
        (TFDS(str(pets), split="train[:0]", **SOURCE), "no record", "split"),
        (TFDS(str(pets)), "no feature 'texts'", "texts"),
        (TFDS(str(pets), texts=("captions/text",)), "no feature 'key'", "key"),
    ]:
        with pytest.raises(InputError, match=problem) as error:
            source.open()
        assert f"`{field}`" in str(error.value), source
    (pets / "pets-train.array_record-00001-of-00002").unlink()
    with pytest.raises(InputError, match="00001-of-00002 is missing"):
        TFDS(str(pets), **SOURCE).open()
