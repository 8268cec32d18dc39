import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vlmax.data.sources.files import find
from vlmax.data.sources.index import Index, open_index

SCHEMA = pa.schema([("value", pa.int64())])


def make_files(folder, counts):
    for i, count in enumerate(counts):
        (folder / f"{i:03d}.txt").write_text("x" * count)
    return find(f"{folder}/*.txt", "s")


def maker(made):
    def make(file):
        made.append(os.path.basename(file.path))
        return pa.RecordBatch.from_pydict({"value": list(range(file.size))}, SCHEMA)

    return make


def test_an_index_is_made_once_and_again_for_a_changed_file(tmp_path):
    counts, made = [3, 1, 2], []
    files = make_files(tmp_path, counts)
    index = open_index(files, "k", SCHEMA, maker(made))
    assert sorted(made) == ["000.txt", "001.txt", "002.txt"]
    assert len(index) == 6 and [index.locate(i) for i in range(6)] == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]
    assert index.part(2).column(0).to_pylist() == [0, 1]
    for outside in (-1, 6):
        with pytest.raises(IndexError):
            index.locate(outside)

    made.clear()
    assert len(open_index(files, "k", SCHEMA, maker(made))) == 6 and not made
    (tmp_path / "001.txt").write_text("xxxx")
    changed = open_index(find(f"{tmp_path}/*.txt", "s"), "k", SCHEMA, maker(made))
    assert made == ["001.txt"] and len(changed) == 9
    made.clear()
    os.utime(tmp_path / "002.txt", ns=(1, 1))
    open_index(find(f"{tmp_path}/*.txt", "s"), "k", SCHEMA, maker(made))
    assert made == ["002.txt"]
    made.clear()
    open_index(files[:1], "other", SCHEMA, maker(made))
    assert made == ["000.txt"]


def test_a_new_file_leaves_the_others_parts_in_use(tmp_path):
    made = []
    open_index(make_files(tmp_path, [1, 2]), "k", SCHEMA, maker(made))
    made.clear()
    assert len(open_index(make_files(tmp_path, [1, 2, 3]), "k", SCHEMA, maker(made))) == 6
    assert "002.txt" in made


def test_an_index_is_beside_its_files_or_in_the_cache(tmp_path, cache):
    files = make_files(tmp_path, [1, 2])
    assert open_index(files, "k", SCHEMA, maker([])).path.startswith(str(tmp_path / ".vlmax_index"))
    locked = tmp_path / "locked"
    locked.mkdir()
    files = make_files(locked, [1, 2])
    locked.chmod(0o555)
    try:
        assert open_index(files, "k", SCHEMA, maker([])).path.startswith(str(cache))
        assert open_index(files[:1], "k", SCHEMA, maker([])).path.startswith(str(cache))
        made = []
        open_index(files, "k", SCHEMA, maker(made))
        assert not made and not (locked / ".vlmax_index").exists()
    finally:
        locked.chmod(0o755)


def test_a_damaged_index_is_made_again(tmp_path):
    files, made = make_files(tmp_path, [5]), []
    path = open_index(files, "k", SCHEMA, maker([])).path
    whole = Path(path).read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"junk" * 100):
        Path(path).write_bytes(damaged)
        made.clear()
        assert len(open_index(files, "k", SCHEMA, maker(made))) == 5 and made
    assert [f for f in os.listdir(tmp_path / ".vlmax_index") if f.endswith(".tmp")] == []


def write_large(path, files, rows):
    """An index of `files * rows` records, as a source of that length would have it."""
    ends = np.arange(1, files + 1, dtype=np.int64) * rows
    schema = SCHEMA.with_metadata({"stamp": "s", "ends": ends.tobytes()})
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, schema) as writer:
        for i in range(files):
            values = pa.array(np.arange(i * rows, (i + 1) * rows, dtype=np.int64))
            writer.write_batch(pa.RecordBatch.from_arrays([values], schema=schema))


def test_ten_million_records_open_quickly_and_take_no_memory(tmp_path):
    write_large(tmp_path / "large.arrow", 1000, 10_000)
    script = (
        "import sys, time, resource, pickle\n"
        "from vlmax.data.sources.index import Index\n"
        "rss = lambda: int(open('/proc/self/smaps_rollup').read().split('Anonymous:')[1].split()[0])\n"
        "before, start = rss(), time.perf_counter()\n"
        f"index = Index({str(tmp_path / 'large.arrow')!r})\n"
        "n = len(index)\n"
        "opened = time.perf_counter() - start\n"
        "for i in range(0, n, n // 5000):\n"
        "    file, row = index.locate(i)\n"
        "    assert index.part(file).column(0)[row].as_py() == i\n"
        "print(n, opened, rss() - before, len(pickle.dumps(index)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    records, opened, grown_kib, pickled = done.stdout.split()
    assert int(records) == 10_000_000
    assert float(opened) < 1
    assert int(grown_kib) < 16 << 10
    assert int(pickled) < 1000


def test_reading_at_the_end_is_as_fast_as_at_the_beginning(tmp_path):
    write_large(tmp_path / "large.arrow", 200, 10_000)
    index = pickle.loads(pickle.dumps(Index(str(tmp_path / "large.arrow"))))

    def seconds(first):
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            for i in range(first, first + 2000):
                file, row = index.locate(i)
                index.part(file).column(0)[row].as_py()
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(1_990_000) < 2 * seconds(0)
