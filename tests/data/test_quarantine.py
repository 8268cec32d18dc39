import json

import pytest

from vlmax.data.batches import BatchInfo, Damaged
from vlmax.data.quarantine import Quarantine, lines
from vlmax.errors import InputError


def info(damaged=(), sound=10):
    return BatchInfo(0, tuple(range(sound)), (("s", "k"),) * sound, tuple(damaged), {}, {"s": sound})


def bad(key, source="s"):
    return Damaged(source, str(key), f"reason\nof {key} \u00fc")


def records(directory):
    return [json.loads(line) for line in (directory / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_record_once_also_after_a_restart(tmp_path):
    quarantine = Quarantine(tmp_path, limit=1.0)
    assert quarantine.add(info()) == 0
    assert not (tmp_path / "quarantine.jsonl").exists()
    assert quarantine.add(info([bad(1), bad(2)])) == 2
    assert quarantine.add(info([bad(2), bad(1, "other")])) == 1
    again = Quarantine(tmp_path, limit=1.0)
    assert again.add(info([bad(1), bad(3)])) == 1
    assert [(r["source"], r["key"]) for r in records(tmp_path)] == [("s", "1"), ("s", "2"), ("other", "1"), ("s", "3")]
    assert set(records(tmp_path)[0]) == {"source", "key", "reason"}
    assert records(tmp_path)[0]["reason"] == bad(1).reason


def test_a_line_cut_off_by_kill_is_written_again(tmp_path):
    Quarantine(tmp_path, limit=1.0).add(info([bad(1), bad(2)]))
    path = tmp_path / "quarantine.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert [d.key for d in lines(path)] == ["1"]
    Quarantine(tmp_path, limit=1.0).add(info([bad(2), bad(3)]))
    assert [d.key for d in lines(path)] == ["1", "2", "3"]


def test_processes_end_in_one_file(tmp_path):
    first, second = (Quarantine(tmp_path, limit=1.0, process=p) for p in range(2))
    first.add(info([bad(1)]))
    second.add(info([bad(2), bad(1)]))
    assert [r["key"] for r in records(tmp_path)] == ["1"]
    first.gather()
    second.gather()
    assert [r["key"] for r in records(tmp_path)] == ["1", "2"]
    second.add(info([bad(4)]))
    Quarantine(tmp_path, limit=1.0)  # the next start
    assert [r["key"] for r in records(tmp_path)] == ["1", "2", "4"]


def test_the_limit_stops_the_run_after_enough_records(tmp_path):
    quarantine = Quarantine(tmp_path, limit=0.1, minimum=100)
    quarantine.add(info([bad(k) for k in range(5)]))  # 5 of 15: too early to judge
    for _ in range(8):
        quarantine.add(info())
    quarantine.add(info([bad(9)]))  # 6 of 106
    said = r"(?s)18 of 128 records are damaged.*'39'.*data\.quarantine_limit=0\.1"
    with pytest.raises(InputError, match=said) as error:
        quarantine.add(info([bad(k) for k in range(28, 40)]))
    assert str(tmp_path / "quarantine.jsonl") in str(error.value)
    assert len(records(tmp_path)) == 18  # written down before the run stops


def test_a_limit_of_zero_allows_none(tmp_path):
    quarantine = Quarantine(tmp_path, limit=0.0, minimum=1)
    quarantine.add(info())
    with pytest.raises(InputError, match="1 of 21"):
        quarantine.add(info([bad(1)]))
