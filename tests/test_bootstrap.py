"""The front door of CapFilt, without a model: what it understands and refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.shared import REPOSITORY
from vlmax.bootstrap import main


def left(arguments, capsys):
    """The exit code and what is printed as an error."""
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    return raised.value.code, capsys.readouterr()


def test_help_names_the_forms_of_sources(capsys):
    code, said = left(["--help"], capsys)
    assert code == 0 and "--captioner" in said.out and "--top-p" in said.out and "shapes[/SPLIT]" in said.out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"--source": "nowhere.tar"}, "nowhere.tar is missing"), ({"--captioner": "nothing"}, "no run's directory"),
        ({"--threshold": "2"}, "--threshold 2.0"), ({"--split": "a b"}, "--split 'a b'"),
        ({"--batch-size": "0"}, "--batch-size 0"), ({"--top-p": "0"}, "top_p is 0"),
        ({"--max-texts": "0"}, "--max-texts 0"), ({"--where": "a=b"}, "--where does not belong to Shapes"),
    ],
)  # fmt: skip
def test_mistakes_leave_with_2(change, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {"--source": "shapes", "--captioner": "c", "--filter": "f", "--out": "o", "--max-records": "8", **change}
    code, said = left([word for pair in flags.items() for word in pair], capsys)
    assert code == 2 and told in said.err + said.out


def test_it_starts_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "vlmax.bootstrap", "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
