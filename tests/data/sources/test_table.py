import csv
import io
import json
import pickle

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.sources import makers
from tests.shared import shared
from vlmax.data.sources.table import Table, _lines
from vlmax.errors import InputError


@pytest.mark.parametrize("root", ["", "file://", "memory://"])
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv"])
def test_rows_and_their_pictures(tmp_path, root, ending):
    path, base = makers.write_table(tmp_path, 7, ending), f"{root}{tmp_path}"
    if root == "memory://":
        for file in tmp_path.iterdir():
            with fsspec.open(f"{base}/{file.name}", "wb") as out:
                out.write(file.read_bytes())
    source = Table((f"{base}/{path.name}",), image="{file}", key="id", fields=("label",))
    reader = pickle.loads(pickle.dumps(source.open()))
    assert len(reader) == 7
    for i, image in reversed(list(enumerate(makers.pictures(7)))):
        example = reader[i]
        assert (example.key, example.image, example.texts) == (f"r{i}", image, (f"picture {i} é",))
        assert example.fields == {"label": i if ending == ".jsonl" else str(i)}
    assert len(pickle.dumps(reader)) < 2000


def test_several_texts_all_fields_and_a_filter(tmp_path):
    path = makers.write_table(tmp_path, 9)
    where = (("label", ("3", "5")), ("id", ("r5", "r4", "r3")))
    source = Table((str(path),), image="{file}", texts=("captions", "caption"), fields=("*",), where=where)
    reader = source.open()
    assert [reader[i].key for i in range(len(reader))] == ["table.jsonl:4", "table.jsonl:6"]
    assert reader[0].texts == ("a 3", "b 3", "picture 3 é")
    assert reader[0].fields == {"id": "r3", "file": "003.jpg", "label": 3, "score": 1.0, "other": {"deep": [3]}}
    assert len(Table((str(path),), image="{file}").open()) == 9  # the filter has an index of its own


@pytest.mark.parametrize("remote", [False, True])
def test_pictures_in_a_zip_file(tmp_path, remote):
    path = makers.write_table(tmp_path, 7, zipped=True)
    archive = "pictures.zip"
    if remote:
        archive = f"memory://zips{tmp_path}/pictures.zip"
        with fsspec.open(archive, "wb") as out:
            out.write((tmp_path / "pictures.zip").read_bytes())
    reader = Table((str(path),), image=f"zip://{{file}}::{archive}").open()
    assert [reader[i].image for i in range(7)] == makers.pictures(7)
    assert [pickle.loads(pickle.dumps(reader))[i].image for i in (3, 1)] == [makers.pictures(7)[i] for i in (3, 1)]


def test_the_shared_emoji_and_photographs_read_as_they_are():
    emoji = shared("data", "emoji")
    source = Table(
        (f"{emoji}/images.jsonl",), image="zip://{codepoint}.png::{vendor}.zip", key="id",
        fields=("subgroup",), where=(("vendor", ("twemoji",)),),
    )  # fmt: skip
    reader = source.open()
    assert len(reader) == 1906
    assert reader[0].key == "twemoji/1f600" and reader[0].image.startswith(b"\x89PNG") and reader[0].texts
    assert not (emoji / ".vlmax_index").exists() or emoji.stat().st_mode & 0o222
    photos = Table(
        (str(shared("data", "coco_photos", "photos.jsonl")),), image="{file}", texts=("captions",), key="id"
    ).open()
    assert len(photos) == 117 and photos[0].key == "285" and len(photos[0].texts) == 5


def test_the_image_template_formats_values_and_root_moves_it(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "000000000285.jpg").write_bytes(b"image")
    (tmp_path / "t.jsonl").write_text('{"id": 285, "caption": "a"}\n')
    source = Table((f"{tmp_path}/t.jsonl",), image="{id:012d}.jpg", root=f"{tmp_path}/pictures")
    assert source.open()[0].image == b"image"
    assert Table((f"{tmp_path}/t.jsonl",), image=None).open()[0].image is None


def test_a_damaged_row_is_bad_and_only_that(tmp_path):
    path = makers.write_table(tmp_path, 12)
    lines = path.read_bytes().splitlines()
    lines[1] = lines[1][:20]
    lines[2] = lines[2].replace(b"picture", b"\xff\xfe")
    lines[3] = b"[1, 2]"
    lines[4] = json.dumps({"id": "x", "file": "missing.jpg", "caption": "c"}).encode()
    lines[5] = json.dumps({"id": "y", "file": "005.jpg", "caption": None}).encode()
    lines[6] = json.dumps({"id": "z", "file": "005.jpg", "caption": 7}).encode()
    lines[7] = json.dumps({"id": "w", "file": None, "caption": "c"}).encode()
    lines[8] = json.dumps({"id": "v", "file": "a" * 5000, "caption": "c"}).encode()
    lines[9] = json.dumps({"id": "u", "file": "nul\0.jpg", "caption": "c"}).encode()
    lines[10] = b'{"id": "s", "file": "005.jpg", "caption": "half \\ud83d"}'
    path.write_bytes(b"\n\n".join(lines) + b"\n")
    (tmp_path / "011.jpg").write_bytes(b"")
    reader = Table((str(path),), image="{file}", key="id").open()
    good, bad = makers.read_all(reader)
    assert set(good) == {0} and len(reader) == 12
    keys = {i: key for i, (key, _) in bad.items()}
    assert [keys[i] for i in range(1, 12)] == [
        "table.jsonl:3", "table.jsonl:5", "table.jsonl:7", "x", "y", "z", "w", "v", "u", "s", "r11"
    ]  # fmt: skip
    reasons = [bad[i][1] for i in range(1, 12)]
    for reason, wanted in zip(
        reasons,
        ["not JSON", "not UTF-8", "JSON list", "missing picture", "no text", "is int, not text", "no value in 'file'",
         "cannot be read", "null byte", "not Unicode text", "zero bytes"], strict=True,
    ):  # fmt: skip
        assert wanted in reason


def test_a_damaged_csv_row_is_bad_and_only_that(tmp_path):
    rows = ["id,caption", '1,"two\nlines, and a comma"', "2,a,b", '3,"never closed', "4,fine", '5,"a ""quote"""']
    (tmp_path / "t.csv").write_bytes("\r\n".join(rows).encode())
    good, bad = makers.read_all(Table((f"{tmp_path}/t.csv",), image=None, key="id").open())
    assert [e.texts[0] for e in good.values()] == ["two\nlines, and a comma", "fine", 'a "quote"']
    assert [key for key, _ in bad.values()] == ["t.csv:4", "t.csv:5"]
    assert bad[1][1] == "the row has 3 columns, the header 2"


@pytest.mark.parametrize("damage", ["member", "bytes", "header", "archive"])
def test_a_damaged_zip_is_bad_records(tmp_path, damage):
    path = makers.write_table(tmp_path, 7, zipped=True)
    data = bytearray((tmp_path / "pictures.zip").read_bytes())
    at = data.index(b"003.jpg")
    if damage == "bytes":
        data[at + 20] ^= 0xFF
    elif damage == "header":
        data[at - 30 : at - 26] = b"XXXX"
    (tmp_path / "pictures.zip").write_bytes(data)
    if damage in ("member", "archive"):
        row = {"file": "no.jpg", "zip": "pictures"} if damage == "member" else {"file": "003.jpg", "zip": "no"}
        table = [json.loads(line) | {"zip": "pictures"} for line in path.read_text().splitlines()]
        table[3] |= row
        path.write_text("\n".join(map(json.dumps, table)))
    image = "zip://{file}::{zip}.zip" if damage in ("member", "archive") else "zip://{file}::pictures.zip"
    good, bad = makers.read_all(Table((str(path),), image=image, key="id").open())
    assert set(bad) == {3} and len(good) == 6
    assert bad[3][0] == "r3"


def test_mistakes_in_the_source_are_errors_before_anything_is_read(tmp_path):
    path = str(makers.write_table(tmp_path, 7))
    csv_path = str(makers.write_table(tmp_path, 7, ".csv"))
    for source, problem, field in [
        (Table((path,), image="{flie}"), "did you mean 'file'", "image"),
        (Table((path,), image="{file}", texts=("captoin",)), "did you mean 'caption'", "texts"),
        (Table((path,), image="{file}", key="ident"), "no column 'ident'", "key"),
        (Table((csv_path,), image="{file}", fields=("labels",)), "did you mean 'label'", "fields"),
        (Table((path,), image="pictures/{file}"), "none of the first 7 pictures", "image"),
        (Table((path,), image="zip://{file}::no.zip"), "no.zip is missing", "image"),
        (Table((path,), image="{file}", where=(("id", ("none",)),)), "no row", "where"),
        (Table((f"{tmp_path}/no.jsonl",)), "is missing", "paths"),
    ]:
        with pytest.raises(InputError, match=problem) as error:
            source.open()
        assert f"`{field}`" in str(error.value)
    with pytest.raises(InputError, match="not a template"):
        Table((path,), image="{file").open()
    (tmp_path / "twice.csv").write_text("a,a\n1,2\n")
    with pytest.raises(InputError, match="each once"):
        Table((f"{tmp_path}/twice.csv",), image=None, texts=("a",)).open()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.text(min_size=1).filter(str.strip), st.text()), min_size=1, max_size=8))
def test_any_csv_that_python_writes_reads_back(values):
    text = io.StringIO(newline="")
    csv.writer(text).writerows(values)
    raw = text.getvalue().encode("utf-8", "surrogatepass")
    found = [line for _, _, line in _lines(io.BytesIO(raw), quoted=True)]
    parsed = [next(csv.reader(io.StringIO(f.decode("utf-8", "surrogatepass"), newline=""))) for f in found]
    assert parsed == [list(v) for v in values]
    for offset, number, line in _lines(io.BytesIO(raw), quoted=True):
        assert raw[offset : offset + len(line)] == line and raw[:offset].count(b"\n") == number - 1
