"""The front door: in, and out again."""

from __future__ import annotations

import json
import re
import shlex

import ml_dtypes
import numpy as np
import pytest

from tests.interop.models import MODELS, random_arrays, same
from tests.shared import REPOSITORY
from vlmax.convert import main, parser
from vlmax.interop.exporting import export
from vlmax.interop.loading import open_model


@pytest.fixture
def foreign(tmp_path):
    _, config = MODELS["mistral"]
    export(tmp_path / "foreign", config, random_arrays(config))
    found = json.loads((tmp_path / "foreign" / "config.json").read_text())
    (tmp_path / "foreign" / "config.json").write_text(
        json.dumps({**found, "bos_token_id": 1, "torch_dtype": "float16"})
    )
    (tmp_path / "foreign" / "generation_config.json").write_text('{"temperature": 0.6}')
    (tmp_path / "foreign" / "tokenizer.model").write_bytes(b"not opened here")
    (tmp_path / "foreign" / "README.md").write_text("stays behind")
    return tmp_path / "foreign"


def run(*arguments):
    main([str(argument) for argument in arguments])


def test_in_and_out(foreign, tmp_path, capsys):
    run("--from", foreign, "--to", tmp_path / "ours")
    assert "LLaMA (llama), 4,656 parameters" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [
        "foreign",
        "model.json",
        "params.safetensors",
    ]
    run("--from", tmp_path / "ours", "--to", tmp_path / "out", "--format", "huggingface")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["config.json", "generation_config.json", "model.safetensors", "tokenizer.model"]
    for name in names[1:]:
        assert (tmp_path / "out" / name).read_bytes() == (foreign / name).read_bytes(), name
    was, now = (json.loads((folder / "config.json").read_text()) for folder in (foreign, tmp_path / "out"))
    del was["torch_dtype"]
    assert was == now
    same(open_model(tmp_path / "out").arrays(), random_arrays(MODELS["mistral"][1]))


def test_another_dtype_and_small_files(foreign, tmp_path):
    run(
        "--from",
        foreign,
        "--to",
        tmp_path / "out",
        "--format",
        "huggingface",
        "--dtype",
        "bfloat16",
        "--shard-gb",
        4e-6,
    )
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    wanted = {path: array.astype(ml_dtypes.bfloat16) for path, array in random_arrays(MODELS["mistral"][1]).items()}
    same(open_model(tmp_path / "out").arrays(), wanted)


def test_what_is_left_out_is_said(tmp_path, capsys):
    from tests.interop.test_bad_input import rewrite

    _, config = MODELS["vit"]
    export(tmp_path / "foreign", config, random_arrays(config))
    rewrite(tmp_path / "foreign", lambda arrays: arrays.update({"classifier.weight": np.zeros((3, 16), np.float32)}))
    run("--from", tmp_path / "foreign", "--to", tmp_path / "ours")
    assert "left out: vlmax's image encoders have no classifier: classifier.weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--to", "."], "there is something already"),
        (["--from", "nowhere"], "no such folder or file"),
        (["--format", "pytorch"], "no format 'pytorch'"),
        (["--format", "opt"], "no model like LLaMA"),
        (["--shard-gb", "0"], "must be above 0"),
    ],
)
def test_mistakes_leave_with_two_and_nothing_behind(change, message, foreign, tmp_path, capsys):
    arguments = {"--from": str(foreign), "--to": str(tmp_path / "out"), change[0]: change[1]}
    with pytest.raises(SystemExit) as left:
        main([word for pair in arguments.items() for word in pair])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()


def test_the_commands_of_the_guide():
    lines = re.findall(
        r"^ {4}python -m vlmax.convert (.+)$", (REPOSITORY / "docs/checkpoints.md").read_text(), re.MULTILINE
    )
    assert len(lines) == 2
    for line in lines:
        assert parser().parse_args(shlex.split(line, comments=True)).source
