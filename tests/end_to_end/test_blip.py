"""BLIP's pretraining on other meshes, on two processes, and resumed: momentum, queues and ramp go on alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.conftest import KEEP
from tests.end_to_end.process import column, rewound, run, run_together, same_history
from tests.shared import REPOSITORY

BLIP = REPOSITORY / "tests" / "end_to_end" / "tiny_blip.py"
TOLERANCE = 1e-5

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run on one device."""
    workdir = tmp_path_factory.mktemp("blip") / "run"
    run(workdir, *KEEP, config=BLIP)
    return workdir


@pytest.mark.parametrize(
    "mesh",
    [("--mesh.data", "1", "--mesh.fsdp", "8"), ("--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2")],
    ids=["fsdp 8", "2 x 2 x 2"],
)
def test_other_meshes(straight: Path, tmp_path: Path, mesh: tuple[str, ...]):
    run(tmp_path, *mesh, config=BLIP, devices=8)
    same_history(tmp_path, straight, TOLERANCE)


def test_two_processes(straight: Path, tmp_path: Path):
    run_together(tmp_path, processes=2, devices=2, config=BLIP)
    same_history(tmp_path, straight, TOLERANCE)


def test_resumed_in_the_middle_of_the_ramp_with_a_queue_half_full(straight: Path, tmp_path: Path):
    resumed = rewound(straight, tmp_path / "run", 12)
    run(resumed, *KEEP, config=BLIP)
    same_history(resumed, straight)
    alpha = column(resumed, "train/alpha")
    assert 0 < float(alpha[13]) < float(alpha[24]) < 0.4
