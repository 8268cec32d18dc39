import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import tensorflow_datasets as tfds

from tests.data.sources import makers
from tests.data.sources.conftest import cache  # noqa: F401
from vlmax.data.checking import check
from vlmax.data.parallel import Work
from vlmax.data.preparing import prepare
from vlmax.data.sources.tfds import TFDS
from vlmax.errors import InputError

OPTIONS = {"image": "{file}", "key": "id", "texts": ("captions", "caption"), "fields": ("*",)}


def digests(out):
    files = [p for p in sorted(out.iterdir()) if p.is_file()]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def work_on_table(folder, count, damaged=()):
    path = makers.write_table(folder, count)
    for i in damaged:
        (folder / f"{i:03d}.jpg").write_bytes((folder / f"{i:03d}.jpg").read_bytes()[:200])
    return Work(str(path), OPTIONS)


def test_every_record_is_there_for_tfds_and_for_vlmax(tmp_path):
    work = work_on_table(tmp_path / "t", 25)
    made = prepare(work, tmp_path / "pairs", shards=3)
    assert (made.written, made.damaged, made.plan.name, made.plan.shards) == (25, 0, "pairs", 3)
    theirs = tfds.builder_from_directory(str(tmp_path / "pairs")).as_data_source("train")
    ours = TFDS(str(tmp_path / "pairs")).open()
    images, rows = makers.pictures(25), makers.rows(25)
    assert len(theirs) == len(ours) == 25
    for i in range(25):
        assert ours[i].key == theirs[i]["key"].decode() == f"r{i}"
        assert ours[i].image == images[i] and theirs[i]["image"].ndim == 3
        assert ours[i].texts == tuple(t.decode() for t in theirs[i]["texts"]) == (f"a {i}", f"b {i}", f"picture {i} é")
        assert ours[i].fields == {n: rows[i][n] for n in ("file", "label", "score", "other")}
        assert theirs[i]["label"] == i and theirs[i]["score"] == i / 3
    assert prepare(Work("shapes/test", {"count": 12, "size": 32}), tmp_path / "shapes").written == 12
    assert TFDS(str(tmp_path / "shapes")).open()[3].image.startswith(b"\x89PNG")


def test_the_result_is_the_same_in_any_number_of_processes(tmp_path):
    work = work_on_table(tmp_path / "t", 40, damaged=(7, 31))
    made = prepare(work, tmp_path / "one", name="x", shards=4)
    assert made.damaged == 2
    prepare(work, tmp_path / "two", name="x", shards=4, workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    before = digests(tmp_path / "one")
    started = []
    prepare(work, tmp_path / "one", name="x", shards=4, start=lambda plan, done: started.append(done))
    assert started == [40] and digests(tmp_path / "one") == before


def test_damaged_records_are_left_out_and_written_down(tmp_path):
    work = work_on_table(tmp_path / "t", 30, damaged=(7, 21))
    (tmp_path / "t" / "011.jpg").unlink()
    made = prepare(work, tmp_path / "x", shards=3, max_damaged=0.2)
    lines = [json.loads(line) for line in (tmp_path / "x" / "quarantine.jsonl").read_text().splitlines()]
    assert made.written == 27 and [line["key"] for line in lines] == ["r7", "r11", "r21"]
    assert all(set(line) == {"source", "key", "reason"} and line["source"] == "table" for line in lines)
    assert "missing picture" in lines[1]["reason"]
    assert len(TFDS(str(tmp_path / "x")).open()) == 27
    assert prepare(work, tmp_path / "y", decode=False).written == 29
    with pytest.raises(InputError, match=r"3 of 30 records are damaged, 'r7' because .*--max-damaged 0.05"):
        prepare(work, tmp_path / "z", max_damaged=0.05)
    assert not (tmp_path / "z" / "dataset_info.json").exists()


def test_a_field_that_changes_its_type_late_is_json_everywhere(tmp_path):
    work = work_on_table(tmp_path / "t", 200)
    path = tmp_path / "t" / "table.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[150]["label"] = "odd"  # not among those looked at first
    rows[151].pop("score")
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    prepare(work, tmp_path / "x", name="x", shards=5)
    fields = [e.fields for e in makers.read_all(TFDS(str(tmp_path / "x")).open())[0].values()]
    assert [f["label"] for f in fields] == [r["label"] for r in rows]
    assert [f["score"] for f in fields] == [r.get("score") for r in rows]
    kind = json.loads((tmp_path / "x" / "features.json").read_text())["featuresDict"]["features"]["label"]
    assert kind["description"] == "JSON"
    prepare(work, tmp_path / "y", name="x", shards=5, workers=2)
    assert digests(tmp_path / "x") == digests(tmp_path / "y")


def test_splits_share_a_folder_and_must_have_the_same_fields(tmp_path):
    train, test = work_on_table(tmp_path / "a", 20), work_on_table(tmp_path / "b", 10, damaged=(4,))
    prepare(train, tmp_path / "x")
    prepare(test, tmp_path / "x", split="test")
    builder = tfds.builder_from_directory(str(tmp_path / "x"))
    assert {n: s.num_examples for n, s in builder.info.splits.items()} == {"train": 20, "test": 9}
    assert len(TFDS(str(tmp_path / "x"), split="test").open()) == 9
    assert len((tmp_path / "x" / "quarantine.jsonl").read_text().splitlines()) == 1
    other = Work(test.spec, OPTIONS | {"fields": ("label",)})
    with pytest.raises(InputError, match=r"other fields.*file, score"):
        prepare(other, tmp_path / "x", split="val")
    with pytest.raises(InputError, match="is the data set 'x', not 'y'"):
        prepare(test, tmp_path / "x", name="y", split="val")


def test_mistakes_are_errors(tmp_path):
    work = work_on_table(tmp_path / "t", 8)
    prepare(work, tmp_path / "x", shards=2)
    for options, problem in [
        ({"shards": 3}, "shards was 2 and is 3"), ({"max_records": 5, "shards": 2}, "records was 8 and is 5"),
        ({"split": "a b"}, "--split 'a b'"), ({"shards": 0}, "at least 1"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=problem):
            prepare(work, tmp_path / "x", **options)
    with pytest.raises(InputError, match="folder on disk"):
        prepare(work, "gs://bucket/x")
    for i in range(8):
        (tmp_path / "t" / f"{i:03d}.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="none of the first 8 pictures"):
        prepare(work, tmp_path / "y")


def test_a_full_disk_is_an_error_that_leaves_what_is_finished(tmp_path, monkeypatch):
    from vlmax.data import shard_writer

    class Full(shard_writer.array_record_module.ArrayRecordWriter):
        def write(self, record):
            raise RuntimeError("write() failed: No space left on device")

    work = work_on_table(tmp_path / "t", 8)
    monkeypatch.setattr(shard_writer.array_record_module, "ArrayRecordWriter", Full)
    with pytest.raises(InputError, match="No space left on device; what is finished stays"):
        prepare(work, tmp_path / "x")
    monkeypatch.undo()
    assert prepare(work, tmp_path / "x").written == 8


def command(work, out, *more):
    flags = ["--image", "{file}", "--key", "id", "--texts", "captions", "caption", "--fields", "*"]
    return [sys.executable, "-m", "vlmax.prepare", "--source", work.spec, "--out", str(out), *flags, *more]


def test_killed_in_the_middle_it_goes_on_and_the_bytes_are_the_same(tmp_path):
    work = work_on_table(tmp_path / "t", 600, damaged=(3, 333))
    prepare(work, tmp_path / "whole", name="x", shards=60)
    out = tmp_path / "killed"
    kept = 0
    for kill_after in (2, 20):
        running = subprocess.Popen(
            command(work, out, "--name", "x", "--shards", "60", "--workers", "2"), stdout=subprocess.DEVNULL
        )
        while len(list(out.glob(".prepare/train/shard-*.json"))) < kept + kill_after and running.poll() is None:
            time.sleep(0.002)
        workers = children(running.pid)
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert running.returncode == -signal.SIGKILL and not (out / "dataset_info.json").exists()
        deadline = time.monotonic() + 20
        while any(map(alive, workers)):
            assert time.monotonic() < deadline, "a worker outlives its parent"
            time.sleep(0.02)
        assert len(workers) >= 2
        kept = len(list(out.glob(".prepare/train/shard-*.json")))
    assert 22 <= kept < 60
    times = {p.name: p.stat().st_mtime_ns for p in out.glob("x-train*")}
    started = []
    prepare(work, out, name="x", shards=60, start=lambda plan, done: started.append(done))
    assert started[0] == 10 * kept
    assert digests(out) == digests(tmp_path / "whole")
    same = [n for n, t in times.items() if (out / n).stat().st_mtime_ns == t]
    assert len(same) >= kept


def children(pid):
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if int(line.split()[1]) == pid]


def alive(pid):
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(found) and not found.startswith("Z")


def test_two_at_once_in_one_folder_are_refused(tmp_path):
    import fcntl

    work = work_on_table(tmp_path / "t", 4)
    (tmp_path / "x" / ".prepare").mkdir(parents=True)
    with (tmp_path / "x" / ".prepare" / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is preparing"):
            prepare(work, tmp_path / "x")


def test_check_says_what_is_wrong(tmp_path):
    work = work_on_table(tmp_path / "t", 20)
    report = check(work)
    assert report.fine and report.records == 20 and report.texts_per_record == 3
    assert report.images["width"][4] == max(report.images["width"]) and report.texts[0] == 3
    path = tmp_path / "t" / "table.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["id"] = rows[4]["id"] = "r5"
    rows[6]["captions"] = [" "]
    rows[7] = {"id": "r7", "file": "no.jpg", "captions": [], "caption": "x"}
    (tmp_path / "t" / "008.jpg").write_bytes(b"\xff\xd8 no picture")
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    for workers in (1, 2):
        report = check(work, workers)
        assert not report.fine
        assert [d["key"] for d in report.damaged] == ["r7", "r8"]
        assert report.empty == ["r6"] and report.duplicates == ({"r5": 3}, 1)


def test_check_tells_records_without_text_unless_none_has_any(tmp_path):
    members = makers.tar_members(range(0, 6))
    (tmp_path / "x.tar").write_bytes(makers.tar_bytes(members))
    assert check(Work(f"{tmp_path}/x.tar", {"texts": ()})).fine
    table = [{"id": i, "captions": ["t"] * (i != 2), "caption": None} for i in range(4)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in table))
    report = check(Work(f"{tmp_path}/t.jsonl", {"image": None, "texts": ("captions",), "key": "id"}))
    assert [d["key"] for d in report.damaged] == ["2"] and not report.without


def test_the_front_door(tmp_path):
    work = work_on_table(tmp_path / "t", 12, damaged=(5,))
    environment = os.environ | {"COLUMNS": "200"}

    def run(*arguments):
        return subprocess.run(arguments, capture_output=True, text=True, env=environment)

    done = run(*command(work, tmp_path / "x", "--workers", "1"))
    assert done.returncode == 0, done.stderr
    assert "11 records in 1 files" in done.stdout and "1 damaged, see" in done.stdout
    front = [sys.executable, "-m", "vlmax.prepare"]
    done = run(*command(work, tmp_path / "c", "--check", "--workers", "1"))
    assert done.returncode == 2 and "r5: damaged" in done.stdout
    assert json.loads((tmp_path / "c" / "quarantine.jsonl").read_text())["key"] == "r5"
    done = run(*front, "--source", f"{tmp_path}/x", "--check", "--workers", "1")
    assert done.returncode == 0 and done.stdout.strip().endswith("fine")
    done = run(*front, "--source", f"{tmp_path}/no.tar", "--out", f"{tmp_path}/y")
    assert done.returncode == 2 and "no.tar is missing" in done.stderr and "Traceback" not in done.stderr
