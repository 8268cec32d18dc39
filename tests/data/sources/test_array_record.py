import pickle
import threading

import fsspec
import pytest

from tests.data.sources import makers
from vlmax.data import tf_examples
from vlmax.data.sources.array_record import ArrayRecord, Records, count
from vlmax.errors import InputError


@pytest.mark.parametrize("root", ["", "file://", "memory://"])
def test_records_of_several_files(tmp_path, root):
    given = makers.examples(9)
    records, _ = makers.serialized(given)
    base = f"{root}{tmp_path}"
    for name, part in (("x.array_record-00000-of-00002", records[:5]), ("x.array_record-00001-of-00002", records[5:])):
        path = makers.write_array_record(tmp_path / name, part)
        if root == "memory://":
            with fsspec.open(f"{base}/{name}", "wb") as out:
                out.write(path.read_bytes())
    source = ArrayRecord((f"{base}/x.array_record-*",), key="key", fields=("label", "word"))
    reader = pickle.loads(pickle.dumps(source.open()))
    assert len(reader) == 9
    for i in (8, 0, 5, 4):
        example = reader[i]
        assert (example.key, example.image, example.texts) == (given[i].key, given[i].image, given[i].texts)
        assert example.fields == {"label": i, "word": f"r{i}"}
    assert ArrayRecord((f"{base}/x.array_record-*",)).open()[6].key == "x.array_record-00001-of-00002:1"
    assert len(pickle.dumps(reader)) < 2000


def test_a_description_beside_the_files_says_what_they_hold(tmp_path):
    given = makers.examples(4)
    records, kinds = makers.serialized(given)
    makers.write_array_record(tmp_path / "x.array_record", records)
    tf_examples.features(kinds).save_config(str(tmp_path))
    reader = ArrayRecord((f"{tmp_path}/x.array_record",), key="key", fields=("*",)).open()
    assert [reader[i] for i in range(4)] == given


def test_a_damaged_record_is_bad_and_only_that(tmp_path):
    given = makers.examples(300)
    records, _ = makers.serialized(given)
    records[3] = records[3][:-30]
    records[4] = b""
    records[5] = records[5].replace(b"a 5", b"a \xff")
    path = makers.write_array_record(tmp_path / "x.array_record", records)
    data = bytearray(path.read_bytes())
    for number in range(50, 300, 100):
        at = data.index(records[number])
        data[at : at + 8] = b"\xff" * 8
    path.write_bytes(data)
    good, bad = makers.read_all(ArrayRecord((str(path),), key="key").open())
    assert set(bad) == {3, 4, 5, 50, 150, 250} and len(good) == 294
    assert all(good[i].image == given[i].image and good[i].key == f"r{i}" for i in good)
    assert bad[5] == ("r5", "texts is not UTF-8 at byte 2")
    assert bad[3] == ("x.array_record:3", "the record is no serialized tf.train.Example")
    assert bad[50][1].startswith("damaged record: ")


def test_threads_read_the_right_records_while_few_files_stay_open(tmp_path):
    paths, spans, wrong = [], [], []
    for i in range(6):
        paths.append(str(makers.write_array_record(tmp_path / f"{i}", [b"%d-%d" % (i, j) * 50 for j in range(30)])))
        spans.append((2, 20))
    records = Records(paths, spans)
    records._open._limit = 2
    assert len(records) == 120

    def read(seed):
        for step in range(200):
            index = (seed * 31 + step * 17) % 120
            if records[index] != b"%d-%d" % (index // 20, index % 20 + 2) * 50:
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(s,)) for s in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_mistakes_in_the_source_are_errors(tmp_path):
    records, _ = makers.serialized(makers.examples(3))
    path = makers.write_array_record(tmp_path / "x.array_record", records)
    (tmp_path / "cut.array_record").write_bytes(path.read_bytes()[:70_000])
    (tmp_path / "other.array_record").write_bytes(b"no array record" * 9000)
    makers.write_array_record(tmp_path / "none.array_record", [])
    for source, problem, field in [
        (ArrayRecord((str(path),), texts=("txt",)), "no feature 'txt'", "texts"),
        (ArrayRecord((str(path),), image="imaeg"), "did you mean 'image'", "image"),
        (ArrayRecord((f"{tmp_path}/cut.array_record",)), "cut off", "paths"),
        (ArrayRecord((f"{tmp_path}/other.array_record",)), "no ArrayRecord file", "paths"),
        (ArrayRecord((f"{tmp_path}/none.array_record",)), "no record", "paths"),
        (ArrayRecord((f"{tmp_path}/no.array_record",)), "is missing", "paths"),
    ]:
        with pytest.raises(InputError, match=problem) as error:
            source.open()
        assert f"`{field}`" in str(error.value)
    assert count(str(path), "s", "paths") == 3
