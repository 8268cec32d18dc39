"""Runs that several tests look at; each is made once. Never change one: copy it with `rewound`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.process import TINY, run

KEEP = ("--checkpoints.keep-every", "12")  # so that tests can go back to the middle


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run on one device."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    run(workdir, *KEEP)
    return workdir


@pytest.fixture(scope="session")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run on eight devices, the batch split over them."""
    workdir = tmp_path_factory.mktemp("eight") / "run"
    run(workdir, "--mesh.data", "8", *KEEP, devices=8)
    return workdir


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An uninterrupted run with evaluations, and what it printed."""
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    return workdir, run(workdir, config=f"{TINY}:evaluated")
