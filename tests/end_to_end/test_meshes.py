"""The same run on other meshes and other numbers of processes: the same examples, the same losses."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end.process import run, run_together, same_history

TOLERANCE = 1e-5  # relative, in float32, over more than 20 steps


def test_data(reference: Path, eight: Path):
    same_history(eight, reference, TOLERANCE)


def test_fsdp(reference: Path, tmp_path: Path):
    run(tmp_path, "--mesh.data", "1", "--mesh.fsdp", "8", devices=8)
    same_history(tmp_path, reference, TOLERANCE)


def test_data_fsdp_and_tensor(reference: Path, tmp_path: Path):
    run(tmp_path, "--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2", devices=8)
    same_history(tmp_path, reference, TOLERANCE)


def test_two_processes(reference: Path, tmp_path: Path):
    first, second = run_together(tmp_path, processes=2, devices=4)
    same_history(tmp_path, reference, TOLERANCE)
    assert "step 24/24" in first and "step 24/24" not in second  # only process 0 reports
