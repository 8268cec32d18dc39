"""One record in a hundred is damaged, in every way that there is: the run completes and says which."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.pictures import encoded
from tests.end_to_end.process import TINY, rewound, run, same_history
from vlmax.data.quarantine import FILE, lines
from vlmax.data.sources.shapes import Shapes

RECORDS = 600
STEPS = 40  # of 16 records each: more than all of them once


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def records() -> tuple[list[tuple[bytes | None, bytes]], dict[int, str]]:
    """Pictures (None: missing) with captions, and what is wrong with some, by their place."""
    reader = Shapes(size=32, count=RECORDS).open()
    found: list[tuple[bytes | None, bytes]] = []
    for index in range(RECORDS):
        example = reader[index]
        found.append((encoded(example.image, "JPEG", quality=95), example.texts[0].encode()))
    whole = found[40][0]
    assert whole is not None
    damage: dict[int, tuple[str, bytes | None, bytes]] = {
        40: ("truncated JPEG", whole[: len(whole) // 2], found[40][1]),
        135: ("zero bytes", b"", found[135][1]),
        222: ("not an image", b"<html>404 Not Found</html>", found[222][1]),
        350: ("bomb", bomb(), found[350][1]),
        421: ("wrong UTF-8", found[421][0], b"a red \xff\xfe circle"),
        577: ("missing file", None, found[577][1]),
    }
    for index, (_, picture, caption) in damage.items():
        found[index] = (picture, caption)
    return found, {index: kind for index, (kind, _, _) in damage.items()}


def write_tars(folder: Path) -> dict[str, str]:
    """Two tar shards; key -> what is wrong."""
    found, damage = records()
    keys = {}
    for shard in range(2):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as tar:
            for index in range(shard * RECORDS // 2, (shard + 1) * RECORDS // 2):
                picture, caption = found[index]
                if index in damage:
                    keys[f"shard-{shard}/{index:04}"] = damage[index]
                for end, data in (("jpg", picture), ("txt", caption)):
                    if data is not None:
                        member = tarfile.TarInfo(f"{index:04}.{end}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
    return keys


def write_table(folder: Path) -> dict[str, str]:
    """JSON lines and a folder of pictures; key -> what is wrong."""
    found, damage = records()
    (folder / "pictures").mkdir()
    rows, keys = [], {}
    for index, (picture, caption) in enumerate(found):
        file = f"pictures/{index:04}.jpg"
        if picture is not None:
            (folder / file).write_bytes(picture)
        rows.append(b'{"image": "%s", "caption": "%s"}\n' % (file.encode(), caption))
        if index in damage:
            keys[f"table.jsonl:{index + 1}"] = damage[index]
    (folder / "table.jsonl").write_bytes(b"".join(rows))
    return keys


@pytest.mark.parametrize(
    ("variant", "write"), [("tars", write_tars), pytest.param("table", write_table, marks=pytest.mark.slow)]
)
def test_damaged_records(variant: str, write: Callable[[Path], dict[str, str]], tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()
    damaged = write(data)
    arguments = ("--steps", str(STEPS), "--checkpoints.keep-every", "12")
    where = {"config": f"{TINY}:{variant}", "VLMAX_TEST_RECORDS": str(data)}
    run(tmp_path / "run", *arguments, **where)
    file = tmp_path / "run" / FILE
    found = lines(file)
    assert {record.key: damaged.get(record.key) for record in found} == damaged, f"quarantined: {found}"
    assert {record.source for record in found} == {variant}
    assert len(found) == len(damaged)
    for line in file.read_text().splitlines():
        assert set(json.loads(line)) == {"source", "key", "reason"}

    # A restart from the middle, with a hole in the list: what it comes upon again is what was there, once.
    again = rewound(tmp_path / "run", tmp_path / "again", 12)
    (again / FILE).write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    run(again, *arguments, **where)
    assert (again / FILE).read_text() == file.read_text()
    same_history(again, tmp_path / "run")
