"""The front door with a real system: fresh BLIPs write and judge, and what they make is read again."""

from __future__ import annotations

import json

import pytest

from tests.bootstrapping.test_bootstrapping import digests
from tests.interop.test_trained import fresh, save
from tests.shared import REPOSITORY
from vlmax.bootstrap import main
from vlmax.command_line import load_experiment
from vlmax.data.sources.tfds import TFDS

SOURCE = '''"""Noisy shapes."""
from vlmax.data.sources.shapes import Shapes
from vlmax.data.sources.shapes_noisy import NoisyShapes


def get_source(variant="base"):
    return NoisyShapes(Shapes(count=20, size=48, captions="full"))
'''


@pytest.mark.slow
def test_a_run_of_blip_writes_and_judges(tmp_path, capsys):
    experiment = load_experiment(str(REPOSITORY / "experiments/blip_vitb_pretrain.py:tiny"))
    state, _ = fresh(experiment)
    save(tmp_path / "run", experiment, state)
    (tmp_path / "noisy.py").write_text(SOURCE)
    flags = {"--source": tmp_path / "noisy.py", "--captioner": tmp_path / "run", "--filter": tmp_path / "run",
             "--out": tmp_path / "set", "--batch-size": 8, "--shard-records": 8, "--workers": 0, "--threshold": 0,
             "--max-new-tokens": 6, "--min-new-tokens": 2, "--seed": 3}  # fmt: skip
    arguments = [str(word) for pair in flags.items() for word in pair] + ["--fields", "group", "wrong"]
    main(arguments)
    said = capsys.readouterr().out
    assert "20 records judged" in said and "noise ratio" in said and "report-train.html" in said
    reader = TFDS(str(tmp_path / "set"), fields=("*",)).open()
    assert len(reader) == 20
    for example in (reader[i] for i in range(20)):
        told = example.fields["provenance"]
        assert [t["from"] for t in told] == ["web", "synthetic"] and isinstance(example.fields["wrong"], bool)
        assert all(0 <= t["score"] <= 1 for t in told if t["score"] is not None)
    assert json.loads((tmp_path / "set" / "report-train.json").read_text())["asked"]["prompt"] == ""
    before = digests(tmp_path / "set")
    main(arguments)
    assert digests(tmp_path / "set") == before
