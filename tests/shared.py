"""Where tests find the data that stands beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def shared_root() -> Path:
    """The folder of shared data: `VLMAX_SHARED`, or `shared` beside the repository."""
    return Path(os.environ.get("VLMAX_SHARED", REPOSITORY.parent / "shared"))


def shared(*parts: str) -> Path:
    """A file or folder of the shared data; the test is skipped, plainly, where it is missing."""
    path = shared_root().joinpath(*parts)
    if not path.exists():
        pytest.skip(f"shared data is missing: {path} (set VLMAX_SHARED to the folder that holds it)")
    return path
