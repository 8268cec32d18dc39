"""The launch script: what it would run, and that it passes on how its processes end."""

from __future__ import annotations

import os
import subprocess

from tests.shared import REPOSITORY

SCRIPT = str(REPOSITORY / "launch" / "local.sh")


def launch(*arguments: str, python: str = "python") -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, env={**os.environ, "PYTHON": python})


def test_dry_run_prints_one_command_a_process():
    found = launch("--processes", "3", "--devices", "4", "--port", "7000", "--dry-run", "--", "--config", "a b.py")
    lines = found.stdout.splitlines()
    assert found.returncode == 0 and len(lines) == 3
    for number, line in enumerate(lines):
        assert f"VLMAX_PROCESS={number} " in line and "VLMAX_COORDINATOR=localhost:7000" in line
        assert "VLMAX_PROCESSES=3" in line and "device_count=4" in line and line.endswith("--config a\\ b.py ")


def test_unknown_flag_is_wrong_input():
    found = launch("--config", "x.py")
    assert found.returncode == 2 and "come after --" in found.stderr


def test_the_code_of_a_failing_process_is_passed_on(tmp_path):
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\n[ "$VLMAX_PROCESS" = 1 ] && exit 3\nexec sleep 60\n')
    stand_in.chmod(0o755)
    assert launch("--processes", "2", "--", python=str(stand_in)).returncode == 3
