import pickle
import subprocess
import sys

import pytest

from tests.data.sources import makers
from vlmax.data.example import Reader, Source
from vlmax.data.sources.array_record import ArrayRecord
from vlmax.data.sources.open import open_source
from vlmax.data.sources.parquet import Parquet
from vlmax.data.sources.shapes import Shapes
from vlmax.data.sources.table import Table
from vlmax.data.sources.tfds import TFDS
from vlmax.data.sources.webdataset import WebDataset
from vlmax.errors import InputError


def test_the_form_is_recognised(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    for spec, source in {
        "shapes": Shapes(),
        "shapes/test": Shapes(split="test"),
        "tfds:coco_captions": TFDS("coco_captions", name="coco_captions"),
        "tfds:coco_captions/2014:1.1.0/val": TFDS("coco_captions/2014:1.1.0", "val", "coco_captions_2014_1.1.0"),
        "tfds:cifar10/train[:10%]": TFDS("cifar10", "train[:10%]", "cifar10"),
        str(tmp_path): TFDS(str(tmp_path), "train", f"{tmp_path.name}-train"),
        f"{tmp_path}/test": TFDS(f"{tmp_path}", "test", f"{tmp_path.name}-test"),
        "gs://bucket/cc-{00000..00331}.tar": WebDataset(("gs://bucket/cc-{00000..00331}.tar",), "cc-00000"),
        "a/*.tar": WebDataset(("a/*.tar",), "source"),
        "a/b.jsonl": Table(("a/b.jsonl",), "b"),
        "a/b.csv": Table(("a/b.csv",), "b"),
        "a/b.tsv": Table(("a/b.tsv",), "b"),
        "a/train-*.parquet": Parquet(("a/train-*.parquet",), "train"),
        "x.array_record-00000-of-00002": ArrayRecord(("x.array_record-00000-of-00002",), "x"),
        "x.array_record*": ArrayRecord(("x.array_record*",), "x"),
    }.items():
        assert open_source(spec) == source, spec
        assert isinstance(open_source(spec), Source) and hash(open_source(spec)) == hash(source)


def test_options_set_fields_and_unknown_ones_are_told(tmp_path):
    source = open_source("a.jsonl", image="{file}", key=None, texts=("captions",))
    assert source == Table(("a.jsonl",), "a", image="{file}", texts=("captions",))
    with pytest.raises(InputError, match=r"--wehre does not belong to Table.*did you mean 'where'"):
        open_source("a.jsonl", wehre=())
    for spec, problem in {
        "a.xyz": "none that vlmax knows.*no such file",
        "shapes/trian": "did you mean 'train'",
        str(tmp_path): "none that",
        "nothing.py": "nothing.py is missing",
    }.items():
        with pytest.raises(InputError, match=problem):
            open_source(spec)


def test_a_python_file_gives_its_source(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from vlmax.data.sources.shapes import Shapes\n"
        "def get_source(variant='train'):\n    return Shapes(split=variant, count=3)\n"
    )
    assert open_source(str(path)) == Shapes(count=3)
    assert open_source(f"{path}:test") == Shapes(split="test", count=3)
    (tmp_path / "none.py").write_text("x = 1\n")
    (tmp_path / "wrong.py").write_text("def get_source():\n    return 3\n")
    for name, problem in (("none", "no get_source"), ("wrong", "returns a int, not a source")):
        with pytest.raises(InputError, match=problem):
            open_source(str(tmp_path / f"{name}.py"))


def test_every_reader_reads_the_same_in_a_spawned_process(tmp_path):
    (tmp_path / "a.tar").write_bytes(makers.tar_bytes(makers.tar_members(range(0, 6))))
    table = makers.write_table(tmp_path / "t", 6, zipped=True)
    makers.write_parquet(tmp_path / "a.parquet", 6)
    makers.write_array_record(tmp_path / "a.array_record", makers.serialized(makers.examples(6))[0])
    readers = [
        open_source(f"{tmp_path}/a.tar").open(),
        open_source(str(table), image="zip://{file}::pictures.zip").open(),
        open_source(f"{tmp_path}/a.parquet").open(),
        open_source(f"{tmp_path}/a.array_record").open(),
    ]
    expected = [(r[5].key, r[5].texts, r[5].image) for r in readers]
    assert all(isinstance(r, Reader) for r in readers) and len({e[2] for e in expected}) == 1
    (tmp_path / "readers.pickle").write_bytes(pickle.dumps(readers))
    script = (
        "import pickle, sys\nreaders = pickle.load(open(sys.argv[1], 'rb'))\n"
        "pickle.dump([(r[5].key, r[5].texts, r[5].image) for r in readers], open(sys.argv[2], 'wb'))"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "readers.pickle", tmp_path / "out"], check=True)
    assert pickle.loads((tmp_path / "out").read_bytes()) == expected
