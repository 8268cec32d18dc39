"""Small sources in every format, with pictures of their own or from the shared data."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_module

from tests.shared import shared_root
from vlmax.data import tf_examples
from vlmax.data.example import BadRecord, Example


def pictures(count: int) -> list[bytes]:
    """JPEGs: the shared photographs where they are there, and painted ones."""
    found = [p.read_bytes() for p in sorted((shared_root() / "data/coco_photos/images").glob("*.jpg"))[:4]]
    painted = [painted_jpeg(i) for i in range(max(count - len(found), 0))]
    return (found + painted)[:count]


def painted_jpeg(number: int, size: int = 24) -> bytes:
    pixels = np.full((size, size, 3), (number * 37 % 256, number * 91 % 256, number * 13 % 256), np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def rows(count: int) -> list[dict]:
    """Rows as JSONL has them: id, file, caption, captions, label, score, other."""
    return [
        {
            "id": f"r{i}", "file": f"{i:03d}.jpg", "caption": f"picture {i} é", "captions": [f"a {i}", f"b {i}"],
            "label": i, "score": i / 3, "other": None if i % 3 else {"deep": [i]},
        }
        for i in range(count)
    ]  # fmt: skip


def tar_bytes(members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tar_members(numbers: range) -> list[tuple[str, bytes]]:
    images, table = pictures(numbers.stop), rows(numbers.stop)
    members = []
    for i in numbers:
        document = {k: table[i][k] for k in ("captions", "label", "score")}
        members += [
            (f"{i:06d}.jpg", images[i]),
            (f"{i:06d}.txt", table[i]["caption"].encode()),
            (f"{i:06d}.json", json.dumps(document).encode()),
        ]
    return members


def write_table(folder: Path, count: int, ending: str = ".jsonl", zipped: bool = False) -> Path:
    table, images, path = rows(count), pictures(count), folder / f"table{ending}"
    folder.mkdir(parents=True, exist_ok=True)
    if zipped:
        with zipfile.ZipFile(folder / "pictures.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for row, image in zip(table, images, strict=True):
                archive.writestr(row["file"], image)
    else:
        for row, image in zip(table, images, strict=True):
            (folder / row["file"]).write_bytes(image)
    if ending == ".jsonl":
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in table), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(
                out, ["id", "file", "caption", "label"], "", "ignore", delimiter=",\t"[ending == ".tsv"]
            )
            writer.writeheader()
            writer.writerows(table)
    return path


def write_parquet(path: Path, count: int, row_group: int = 4, struct: bool = True) -> Path:
    images, table = pictures(count), rows(count)
    image = [{"bytes": b, "path": r["file"]} for b, r in zip(images, table, strict=True)] if struct else images
    columns = {"image": image} | {c: [r[c] for r in table] for c in ("id", "caption", "captions", "label", "score")}
    pq.write_table(pa.table(columns), path, row_group_size=row_group)
    return path


def write_array_record(path: Path, records: list[bytes]) -> Path:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def examples(count: int) -> list[Example]:
    fields = [{k: r[k] for k in ("label", "score", "other")} | {"word": r["id"]} for r in rows(count)]
    zipped = zip(rows(count), pictures(count), fields, strict=True)
    return [Example(r["id"], image, tuple(r["captions"]), f) for r, image, f in zipped]


def serialized(given: list[Example]) -> tuple[list[bytes], dict[str, tf_examples.Kind]]:
    kinds = tf_examples.kinds_of_example(given[0])
    for example in given[1:]:
        kinds = tf_examples.widen(kinds, tf_examples.kinds_of_example(example))
    return [tf_examples.encode(e, kinds) for e in given], kinds


def read_all(reader) -> tuple[dict[int, Example], dict[int, tuple[str | None, str]]]:
    """The examples of a reader, and the keys and reasons of its bad records, each the same when read again."""
    good, bad = {}, {}
    for index in range(len(reader)):
        try:
            good[index] = reader[index]
        except BadRecord as error:
            bad[index] = (error.key, str(error))
            assert "\n" not in str(error)
            try:
                reader[index]
            except BadRecord as again:
                assert (again.key, str(again)) == bad[index]
            else:
                raise AssertionError(f"record {index} is damaged once and not again") from None
    return good, bad
