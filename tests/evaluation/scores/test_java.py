"""METEOR and SPICE by their protocols, with small programs in the place of Java; and by METEOR itself where it is."""

from __future__ import annotations

import gzip
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from tests.shared import shared
from vlmax.errors import InputError, RunFailed
from vlmax.evaluation.scores.captions import Captions, CaptionScore
from vlmax.evaluation.scores.java import Meteor, Spice

CAPTIONS = Captions(("a dog", "two cats"), (("a dog", "one dog"), ("a cat",)))
METEOR = """
given = []
for line in sys.stdin:
    parts = [part.strip() for part in line.split("|||")]
    if parts[0] == "SCORE":
        given.append(parts[1:])
        print(f"{len(parts)} {len(given)}", flush=True)
    else:
        for part in parts[1:]:
            print(float(part.split()[0]) / 10)
        print(0.25, flush=True)
"""
SPICE = """
given = json.load(open(sys.argv[sys.argv.index("-jar") + 2]))
scores = [{"image_id": e["image_id"], "scores": {"All": {"f": len(e["refs"]) / 4}}} for e in reversed(given)]
json.dump(scores, open(sys.argv[sys.argv.index("-out") + 1], "w"))
"""


@pytest.fixture
def java(tmp_path, monkeypatch):
    """Puts a program called java on the PATH."""

    def put(body: str) -> Path:
        path = tmp_path / "bin" / "java"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{sys.executable}\nimport json, sys\n{body}")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
        jar = tmp_path / "program.jar"
        jar.write_bytes(b"")
        return jar

    return put


def test_meteor_is_asked_caption_by_caption(java):
    meteor = Meteor(str(java(METEOR)))
    assert isinstance(meteor, CaptionScore)
    found = meteor.score(CAPTIONS, [])["meteor"]
    assert found.value == 0.25 and found.images.tolist() == [0.4, 0.3]


def test_spice_reads_a_file_and_writes_one(java, tmp_path):
    spice = Spice(str(java(SPICE)))
    with pytest.raises(InputError, match=r"models\.jar"):
        spice.score(CAPTIONS, [])
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "stanford-corenlp-3.6.0-models.jar").write_bytes(b"")
    found = spice.score(CAPTIONS, [])["spice"]
    assert found.value == 0.375 and found.images.tolist() == [0.5, 0.25]


def test_a_program_that_fails_is_told_with_its_words(java, tmp_path):
    jar = java("print('out of memory', file=sys.stderr); sys.exit(3)")
    with pytest.raises(RunFailed, match="out of memory"):
        Meteor(str(jar)).score(CAPTIONS, [])
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "stanford-corenlp-3.6.0-models.jar").write_bytes(b"")
    with pytest.raises(RunFailed, match=r"failed \(3\).*out of memory"):
        Spice(str(jar)).score(CAPTIONS, [])


def test_what_is_missing_is_told(java, tmp_path, monkeypatch):
    java(METEOR)
    with pytest.raises(InputError, match=r"no file .*; set Meteor.jar"):
        Meteor(str(tmp_path / "nothing.jar")).check()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no `java` on this machine's PATH"):
        Spice("spice.jar").check()


@pytest.mark.slow
def test_meteor_itself_gives_the_published_scores():
    """Runs where METEOR_JAR names the program."""
    jar = os.environ.get("METEOR_JAR")
    if not jar:
        pytest.skip("METEOR_JAR names no program")
    published = json.loads(shared("data/reference/published.json").read_text())
    for case in published["nlg_eval"]["cases"]:
        found = Meteor(jar).of_tokens(case["hyps"], case["refs"])
        assert found.value == pytest.approx(case["expected"]["METEOR"], abs=1e-6)
    wanted = json.loads(shared("data/reference/caption_metrics_pycocoevalcap.json").read_text())["first_vs_rest_all"]
    with gzip.open(shared("data/reference/ptb_tokenized_val2017.jsonl.gz"), "rt") as file:
        tokens = {row["image_id"]: row["tokenized"] for row in map(json.loads, file)}
    chosen = [tokens[row["image_id"]] for row in wanted["per_image"]]
    found = Meteor(jar).of_tokens([texts[0] for texts in chosen], [texts[1:] for texts in chosen])
    assert found.images == pytest.approx([row["METEOR"] for row in wanted["per_image"]], abs=1e-9)
