import pickle

import pytest

from tests.data.sources import makers
from vlmax.data.example import Source
from vlmax.data.sources.shards import Shards
from vlmax.errors import InputError


def test_tar_shards_are_read(tmp_path):
    for shard in range(2):
        members = [
            member
            for i in range(3)
            for member in ((f"{i}.jpg", makers.painted_jpeg(i)), (f"{i}.txt", f"picture {shard}{i}".encode()))
        ]
        (tmp_path / f"{shard}.tar").write_bytes(makers.tar_bytes(members))
    source = Shards((f"{tmp_path}/{{0..1}}.tar",))
    reader = pickle.loads(pickle.dumps(source.open()))
    assert isinstance(source, Source) and len(reader) == 6
    assert reader[4].texts == ("picture 11",) and reader[4].image == makers.painted_jpeg(1)


def test_array_records_are_read(tmp_path):
    from array_record.python import array_record_module

    from vlmax.data import tf_examples
    from vlmax.data.example import Example

    path = f"{tmp_path}/pairs.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
    for i in range(3):
        example = Example(str(i), makers.painted_jpeg(i), (f"picture {i}", "another"))
        writer.write(tf_examples.encode(example, tf_examples.kinds_of_example(example)))
    writer.close()
    reader = Shards((f"{tmp_path}/*.array_record*",)).open()
    assert len(reader) == 3 and reader[2].texts == ("picture 2", "another")


@pytest.mark.parametrize("paths", [(), ("a.zip",), ("a.tar", "b.array_record"), ("a.tar.gz",)])
def test_other_names_are_an_error(paths):
    with pytest.raises(InputError, match=r"paths"):
        Shards(paths).open()
