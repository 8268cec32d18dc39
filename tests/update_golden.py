"""Writes the golden snapshots of every experiment's resolved tree: `python -m tests.update_golden`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tests.shared import REPOSITORY
from vlmax.command_line import load_experiment, load_file
from vlmax.training.record import resolved

EXPERIMENTS = REPOSITORY / "experiments"
GOLDEN = REPOSITORY / "tests" / "golden" / "experiments"


def variants() -> Iterator[tuple[Path, str]]:
    """Every experiment file with each of its variants."""
    for file in sorted(EXPERIMENTS.glob("*.py")):
        for variant in load_file(file).VARIANTS:
            yield file, variant


def snapshot(file: Path, variant: str) -> str:
    """The experiment's whole tree as text, a field a line."""
    return json.dumps(resolved(load_experiment(f"{file}:{variant}")), indent=2) + "\n"


def golden(file: Path, variant: str) -> Path:
    """Where the snapshot lies."""
    return GOLDEN / f"{file.stem}_{variant}.json"


def main() -> None:
    """Writes them all and removes those that no experiment has any more."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    written = {golden(*pair): snapshot(*pair) for pair in variants()}
    for old in sorted(set(GOLDEN.glob("*.json")) - written.keys()):
        old.unlink()
        print(f"removed {old.name}")
    for path, content in written.items():
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
            print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
