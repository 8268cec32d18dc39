import pickle

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.sources import makers
from vlmax.data.sources.parquet import Parquet
from vlmax.errors import InputError


@pytest.mark.parametrize("root", ["", "file://", "memory://"])
@pytest.mark.parametrize("struct", [True, False])
def test_rows_of_several_files(tmp_path, root, struct):
    base = f"{root}{tmp_path}"
    for name, count in (("a", 10), ("b", 7)):
        path = makers.write_parquet(tmp_path / f"{name}.parquet", count, struct=struct)
        if root == "memory://":
            with fsspec.open(f"{base}/{path.name}", "wb") as out:
                out.write(path.read_bytes())
    source = Parquet((f"{base}/*.parquet",), texts=("captions", "caption"), fields=("*",))
    reader = pickle.loads(pickle.dumps(source.open()))
    assert len(reader) == 17
    images = [*makers.pictures(10), *makers.pictures(7)]
    for i in (16, 0, 9, 10, 4, 3):
        number = i if i < 10 else i - 10
        example = reader[i]
        assert example.key == f"{'a' if i < 10 else 'b'}.parquet:{number}"
        assert example.image == images[i]
        assert example.texts == (f"a {number}", f"b {number}", f"picture {number} é")
        assert example.fields == {"id": f"r{number}", "label": number, "score": number / 3}
    assert len(pickle.dumps(reader)) < 2000
    for outside in (-1, 17):
        with pytest.raises(IndexError):
            reader[outside]


def test_few_row_groups_stay_and_columns_that_nobody_wants_are_not_read(tmp_path):
    makers.write_parquet(tmp_path / "a.parquet", 40, row_group=2)
    reader = Parquet((f"{tmp_path}/a.parquet",), key="id", cached_row_groups=3).open()
    assert [reader[i].key for i in range(40)] == [f"r{i}" for i in range(40)]
    assert len(reader._groups) == 3
    assert set(reader.columns) == {"image", "caption", "id"}


def test_a_damaged_row_is_bad_and_only_that(tmp_path):
    image = makers.painted_jpeg(1)
    table = {
        "image": [image, None, b"", image, image, image],
        "caption": pa.array([b"fine", b"t", b"t", b"wrong \xff", None, b"other"], pa.binary()).view(pa.string()),
        "word": pa.array([b"w", b"w", b"w", b"w", b"w", b"\xff"], pa.binary()).view(pa.string()),
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    good, bad = makers.read_all(Parquet((f"{tmp_path}/a.parquet",)).open())
    assert set(good) == {0, 5}
    assert [bad[i] for i in (1, 2, 3, 4)] == [
        ("a.parquet:1", "image is NoneType, not image bytes"),
        ("a.parquet:2", "image has zero bytes"),
        ("a.parquet:3", "caption is not UTF-8 at byte 6"),
        ("a.parquet:4", "no text in caption"),
    ]


def test_a_damaged_row_group_is_bad_records(tmp_path):
    path = makers.write_parquet(tmp_path / "a.parquet", 12, row_group=4)
    data = bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(1)
    column = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "caption")
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 12] = b"\xff" * 12
    path.write_bytes(data)
    good, bad = makers.read_all(Parquet((str(path),)).open())
    assert set(good) == {0, 1, 2, 3, 8, 9, 10, 11}
    assert {reason for _, reason in bad.values()} == {"row group 1 of the file is damaged"}
    assert {key for key, _ in bad.values()} == {f"a.parquet:{i}" for i in range(4, 8)}


def test_mistakes_in_the_source_are_errors(tmp_path):
    path = makers.write_parquet(tmp_path / "a.parquet", 4)
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:-50])
    pq.write_table(pq.read_table(path).slice(0, 0), tmp_path / "none.parquet")
    for source, problem, field in [
        (Parquet((str(path),), texts=("captoin",)), "did you mean 'caption'", "texts"),
        (Parquet((str(path),), image="img"), "no column 'img'", "image"),
        (Parquet((f"{tmp_path}/cut.parquet",)), "no Parquet file, or cut off", "paths"),
        (Parquet((f"{tmp_path}/none.parquet",)), "no row", "paths"),
        (Parquet((f"{tmp_path}/no.parquet",)), "is missing", "paths"),
    ]:
        with pytest.raises(InputError, match=problem) as error:
            source.open()
        assert f"`{field}`" in str(error.value)
