import dataclasses
import hashlib
import json

import pytest
import tensorflow_datasets as tfds

from tests.bootstrapping.stand_in import GONE, TORN, Greys, SeesGrey, mesh
from vlmax.bootstrapping.bootstrapping import Asked, Parts, bootstrap, sizes
from vlmax.bootstrapping.report import provenance, write_report
from vlmax.data.sources.tfds import TFDS
from vlmax.errors import InputError


def asked(source, split="train", batch_size=4, shard_records=10, **changes):
    shards, ends = sizes(len(source), batch_size, shard_records)
    made = Asked(
        repr(source), len(source), "set", split, shards, False, captioner="c", filter="f", prompt="", settings="s",
        threshold=0.5, texts=2, batch_size=batch_size, seed=0, fields="number odd",
    )  # fmt: skip
    return dataclasses.replace(made, **changes), ends


def run(out, source=None, judge=None, split="train", **changes):
    source = source or Greys()
    wanted, ends = asked(source, split, **changes)
    made = bootstrap(source, judge or SeesGrey(), wanted, ends, out, mesh())
    return made, wanted


def digests(out):
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in out.rglob("*") if p.is_file()}


def test_sizes_are_whole_batches():
    assert sizes(50, 4, 10) == (5, [0, 12, 24, 36, 48, 50]) and sizes(3, 4, 1) == (1, [0, 3])
    assert sizes(24, 4, 12) == (2, [0, 12, 24])
    for wrong in ((0, 4, 4), (4, 0, 4), (4, 4, 0)):
        with pytest.raises(InputError, match="at least 1"):
            sizes(*wrong)


def test_right_texts_are_kept_wrong_ones_dropped_and_all_is_written_down(tmp_path):
    made, plan = run(tmp_path)
    reader = TFDS(str(tmp_path), fields=("*",)).open()
    theirs = tfds.builder_from_directory(str(tmp_path)).as_data_source("train")
    records = {e.fields["number"]: e for e in (reader[i] for i in range(len(reader)))}
    lines = {line["index"]: line for line in provenance(tmp_path, plan)}
    assert len(theirs) == len(reader) == made.written and lines.keys() == set(range(50)) - {GONE, TORN}
    for i, line in lines.items():
        web = [] if i == 5 else [{"text": f"grey {i + (i % 3 == 0)} <0>", "from": "web", "kept": i % 3 != 0}]
        own = i % 11 != 0 and i % 5 != 0
        texts = line["texts"]
        assert [{n: t[n] for n in ("text", "from", "kept")} for t in texts[:-1]] == web and line["key"] == f"k{i}"
        assert texts[-1]["from"] == "synthetic" and texts[-1]["kept"] == own
        assert texts[-1]["score"] == (None if i % 11 == 0 else 0.75 if i % 5 else 0.25)
        kept = tuple(t["text"] for t in texts if t["kept"])
        assert (i in records) == bool(kept)
        if kept:
            example = records[i]
            assert example.texts == kept and example.key == f"k{i}" and example.image.startswith(b"\x89PNG")
            assert example.fields == {"number": i, "odd": {"deep": [i]} if i % 2 else None, "provenance": texts}
    damaged = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [(d["key"], d["source"]) for d in damaged] == [("k7", "greys"), ("k13", "greys")] and made.damaged == 2


def test_stopped_at_any_batch_it_goes_on_and_gives_the_same(tmp_path):
    run(tmp_path / "whole")
    judge = SeesGrey()
    run(tmp_path / "again", judge=judge)
    assert len(judge.seeds) == len(set(judge.seeds)) == 13 and digests(tmp_path / "again") == digests(
        tmp_path / "whole"
    )
    rounds = 0
    for fail_at in (0, 2, 4, 5, None):
        try:
            made, _ = run(tmp_path / "stopped", judge=SeesGrey(fail_at=fail_at))
        except KeyboardInterrupt:
            rounds += 1
            assert not (tmp_path / "stopped" / "dataset_info.json").exists()
    assert rounds == 4 and digests(tmp_path / "stopped") == digests(tmp_path / "whole")
    judge = SeesGrey()
    again, _ = run(tmp_path / "stopped", judge=judge)
    assert judge.seeds == [] and again == made
    (tmp_path / "stopped" / "provenance" / "train-00001-of-00005.jsonl").unlink()
    run(tmp_path / "stopped", judge=judge)
    assert len(judge.seeds) == 3 and digests(tmp_path / "stopped") == digests(tmp_path / "whole")


def test_another_plan_or_source_is_refused(tmp_path):
    run(tmp_path)
    for change, told in [
        ({"threshold": 0.4}, "threshold was 0.5 and is 0.4"),
        ({"captioner": "d"}, "captioner was 'c'"),
    ]:
        with pytest.raises(InputError, match=told):
            run(tmp_path, **change)
    with pytest.raises(InputError, match=r"--fields nothing: the source's records have no such field; .* number, odd"):
        run(tmp_path / "x", fields="nothing")
    with pytest.raises(InputError, match="does not divide over the 2 parts"):
        run(tmp_path / "y", batch_size=3)


def test_a_field_may_be_asked_for_though_the_first_record_is_damaged(tmp_path):
    source = Parts(Greys(), ((GONE, GONE + 4),))
    wanted, ends = asked(Greys(4), fields="number")
    made = bootstrap(source, SeesGrey(), wanted, ends, tmp_path / "set", mesh(), max_damaged=0.5)
    assert made is not None and made.damaged == 1
    wanted, ends = asked(Greys(1), fields="number")
    with pytest.raises(InputError, match="its first 1 records are damaged"):
        bootstrap(Parts(Greys(), ((GONE, GONE + 1),)), SeesGrey(), wanted, ends, tmp_path / "gone", mesh())


def test_other_splits_may_have_fewer_fields_but_not_more(tmp_path):
    run(tmp_path, fields="number")
    run(tmp_path, Greys(20, damaged=False), split="less", fields="")
    with pytest.raises(InputError, match="other fields"):
        run(tmp_path, Greys(20, damaged=False), split="more", fields="number odd")
    less = TFDS(str(tmp_path), "less").open()
    assert {name: value for name, value in less[0].fields.items() if name != "provenance"} == {"number": None}


def test_too_much_damage_ends_it_without_a_set(tmp_path):
    source = Greys(16)
    plan, ends = asked(source)
    with pytest.raises(InputError, match=r"2 of 16 records are damaged, 'k7' because gone.*--max-damaged 0.05"):
        bootstrap(source, SeesGrey(), plan, ends, tmp_path, mesh(), max_damaged=0.05)
    assert not (tmp_path / "dataset_info.json").exists()


def test_texts_beyond_the_first_are_told(tmp_path):
    source = Greys(12, texts=3, damaged=False)
    _, plan = run(tmp_path, source)
    lines = list(provenance(tmp_path, plan))
    assert all(len(line["texts"]) == 3 and line["not_judged"] == 1 for line in lines if line["index"] != 5)


def test_parts_are_the_spans_in_their_order():
    reader = Parts(Greys(20, damaged=False), ((2, 5), (9, 10), (18, 20))).open()
    assert [reader[i].fields["number"] for i in range(len(reader))] == [2, 3, 4, 9, 18, 19]


def test_the_report_counts_and_shows(tmp_path):
    made, plan = run(tmp_path)
    report = write_report(tmp_path, plan, made.damaged, Greys())
    web, synthetic = report.origins["web"], report.origins["synthetic"]
    assert (report.records, report.damaged, report.not_judged) == (48, 2, 0)
    assert (web.texts, web.dropped, web.empty) == (47, 17, 0) and sum(web.scores) == 47 and web.scores[18] == 30
    assert (synthetic.texts, synthetic.empty) == (48, 5) and synthetic.dropped == 14 and web.noise_ratio == 17 / 47
    assert report.without == sum(i % 3 == 0 and (i % 5 == 0 or i % 11 == 0) for i in range(50)) + 1  # 5 has no web text
    figures = json.loads((tmp_path / "report-train.json").read_text())
    assert figures["origins"]["web"]["noise_ratio"] == 17 / 47 and figures["asked"]["threshold"] == 0.5
    page = (tmp_path / "report-train.html").read_text()
    assert page.count("<figure>") == 48 and "data:image/jpeg;base64," in page and "36.2%" in page
    assert "&lt;0&gt;" in page and "<0>" not in page
