import io
import os
import pickle
import tarfile

import fsspec
import pytest

from tests.data.sources import makers
from vlmax.data.sources.webdataset import WebDataset
from vlmax.errors import InputError


@pytest.fixture
def shards(tmp_path):
    for number, first in enumerate((0, 6)):
        data = makers.tar_bytes(makers.tar_members(range(first, first + 6)))
        (tmp_path / f"cc-{number:05d}.tar").write_bytes(data)
    return tmp_path


@pytest.mark.parametrize("root", ["", "file://", "memory://"])
def test_records_are_the_files_of_one_stem(shards, root):
    base = f"{root}{shards}"
    if root == "memory://":
        for name in os.listdir(shards):
            with fsspec.open(f"{base}/{name}", "wb") as out:
                out.write((shards / name).read_bytes())
    source = WebDataset((f"{base}/cc-{{00000..00001}}.tar",), texts=("json/captions", "txt"), fields=("label", "score"))
    reader = pickle.loads(pickle.dumps(source.open()))
    images, table = makers.pictures(12), makers.rows(12)
    assert len(reader) == 12
    for i in (11, 0, 6, 5):
        example = reader[i]
        assert example.key == f"cc-{i // 6:05d}/{i:06d}"
        assert example.image == images[i]
        assert example.texts == (f"a {i}", f"b {i}", table[i]["caption"])
        assert example.fields == {"label": i, "score": i / 3}
    assert len(pickle.dumps(reader)) < 2000
    with pytest.raises(IndexError):
        reader[12]


def test_the_shards_are_read_once(shards, monkeypatch):
    source = WebDataset((f"{shards}/*.tar",))
    source.open()
    monkeypatch.setattr(tarfile, "open", lambda **kwargs: pytest.fail("the shard is indexed again"))
    assert len(source.open()) == 12
    assert WebDataset((f"{shards}/*.tar",), texts=("json/captions",), fields=("*",)).open()[3].fields == {
        "label": 3, "score": 1.0
    }  # fmt: skip


def test_what_a_record_is_made_of_can_be_chosen(tmp_path):
    image = makers.painted_jpeg(1)
    members = [("d/a.b.seg.PNG", b"mask"), ("d/a.PNG", image), ("d/a.cls.txt", b"7"), ("e/a.txt", b"text only")]
    (tmp_path / "x.tar").write_bytes(makers.tar_bytes(members))
    reader = WebDataset((f"{tmp_path}/x.tar",), texts=("cls.txt",)).open()
    assert len(reader) == 2 and reader[0].key == "x/d/a" and reader[0].image == image and reader[0].texts == ("7",)
    assert WebDataset((f"{tmp_path}/x.tar",), image=("b.seg.png",), texts=()).open()[0].image == b"mask"
    assert WebDataset((f"{tmp_path}/x.tar",), image=()).open()[1].texts == ("text only",)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_odd_names_are_keys(tmp_path, format):
    stems = ["x" * 90, "é" * 20] + ([] if format == tarfile.USTAR_FORMAT else ["y" * 300])
    members = [(f"{s}.{e}", makers.painted_jpeg(1) if e == "jpg" else b"t") for s in stems for e in ("jpg", "txt")]
    (tmp_path / "x.tar").write_bytes(makers.tar_bytes(members, format))
    reader = WebDataset((f"{tmp_path}/x.tar",)).open()
    assert [reader[i].key for i in range(len(reader))] == [f"x/{s}" for s in stems]
    raw = makers.tar_bytes([("ab.jpg", b"i"), ("ab.txt", b"t")], tarfile.USTAR_FORMAT)
    info = [tarfile.TarInfo(n) for n in ("ab.jpg", "ab.txt")]
    for one in info:
        one.name = one.name.replace("a", "\udcff")
        one.size = 1
    blocks = [i.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape") for i in info]
    raw = b"".join(b + c.ljust(512, b"\0") for b, c in zip(blocks, (b"i", b"t"), strict=True)) + bytes(1024)
    (tmp_path / "odd.tar").write_bytes(raw)
    key = WebDataset((f"{tmp_path}/odd.tar",)).open()[0].key
    assert key == "odd/\\xffb" and key.encode()


def test_folders_and_links_in_a_shard_are_no_records(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, type in (("d", tarfile.DIRTYPE), ("d/l.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = type, "elsewhere"
            tar.addfile(info)
        info = tarfile.TarInfo("d/a.txt")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"t"))
    (tmp_path / "x.tar").write_bytes(out.getvalue())
    assert len(WebDataset((f"{tmp_path}/x.tar",), image=()).open()) == 1


def test_a_damaged_record_is_bad_and_only_that(tmp_path):
    members = makers.tar_members(range(0, 8))
    names = [n for n, _ in members]
    for name, data in {
        "000001.txt": b"caf\xff",
        "000002.json": b"{",
        "000003.json": b"[1]",
        "000004.jpg": b"",
        "000005.json": b"\xff{}",
    }.items():
        members[names.index(name)] = (name, data)
    members = [(n, d) for n, d in members if n not in ("000006.jpg", "000007.txt")]
    (tmp_path / "x.tar").write_bytes(makers.tar_bytes(members))
    good, bad = makers.read_all(WebDataset((f"{tmp_path}/x.tar",), texts=("txt", "json/nothing")).open())
    assert set(good) == {0}
    assert {k: key for k, (key, _) in bad.items()} == {i: f"x/{i:06d}" for i in range(1, 8)}
    reasons = {i: reason for i, (_, reason) in bad.items()}
    assert reasons[1] == "txt is not UTF-8 at byte 3" and reasons[2].startswith("json is not JSON")
    assert reasons[3] == "json is a JSON list, not an object" and reasons[4] == "jpg has zero bytes"
    assert (
        reasons[5].startswith("json is not UTF-8")
        and reasons[6].startswith("no jpg")
        and reasons[7].startswith("no text")
    )
    good, bad = makers.read_all(WebDataset((f"{tmp_path}/x.tar",)).open())
    assert set(bad) == {1, 4, 6, 7}  # damaged JSON that nobody wants does no harm


@pytest.mark.parametrize("lost", [100, 1100, 2000, 3000])
def test_a_shard_that_is_cut_off_keeps_its_whole_records(tmp_path, lost):
    members = [(f"{i:02d}.{e}", b"x" * 700) for i in range(20) for e in ("jpg", "txt")]
    whole = b"".join(
        tarfile.TarInfo.tobuf(_info(name, len(data)), tarfile.USTAR_FORMAT) + data.ljust(1024, b"\0")
        for name, data in members
    )
    (tmp_path / "x.tar").write_bytes(whole[:-lost])
    good, bad = makers.read_all(WebDataset((f"{tmp_path}/x.tar",)).open())
    assert set(good) == set(range(19)) | ({19} if lost == 100 else set())
    assert bool(bad) == (lost != 100)
    assert all(key for key, _ in bad.values())


def test_a_damaged_header_costs_its_own_record_and_is_reported(tmp_path):
    members = makers.tar_members(range(0, 30))
    data = bytearray(makers.tar_bytes(members, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        at = tar.getmember("000010.txt").offset
    data[at : at + 512] = b"\x55" * 512
    (tmp_path / "x.tar").write_bytes(bytes(data))
    good, bad = makers.read_all(WebDataset((f"{tmp_path}/x.tar",)).open())
    stems = {e.key for e in good.values()}
    assert stems == {f"x/{i:06d}" for i in range(30) if i != 10}
    assert {reason for _, reason in bad.values()} >= {f"damaged tar header at byte {at} of the shard"}
    assert "x/000010" in {key for key, _ in bad.values()}


def test_every_hundredth_record_damaged_is_exactly_what_is_reported(tmp_path):
    members = makers.tar_members(range(0, 300))
    wanted = set()
    for i in range(50, 300, 100):
        members = [(n, b"" if n == f"{i:06d}.jpg" else d) for n, d in members]
        wanted.add(f"x/{i:06d}")
    (tmp_path / "x.tar").write_bytes(makers.tar_bytes(members))
    source = WebDataset((f"{tmp_path}/x.tar",))
    first, again = (makers.read_all(source.open())[1] for _ in range(2))
    assert {key for key, _ in first.values()} == wanted and first == again


def test_what_is_no_tar_is_an_error_with_its_path(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar file at all" * 100)
    with tarfile.open(tmp_path / "b.tar", "w:gz") as tar:
        tar.addfile(_info("a.txt", 0))
    (tmp_path / "c.tar").write_bytes(bytes(10240))
    for name, problem in (("a", "no tar file"), ("b", "no tar file"), ("c", "no records")):
        with pytest.raises(InputError, match=problem) as error:
            WebDataset((f"{tmp_path}/{name}.tar",), name="laion").open()
        assert "laion" in str(error.value) and "`paths`" in str(error.value)


def _info(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    return info
