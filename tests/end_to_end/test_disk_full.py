"""No space left while saving: a clear error, the last good checkpoint untouched; with room the run goes on."""

from __future__ import annotations

import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.process import (
    TINY,
    checkpoints,
    ended,
    environment,
    run,
    same_history,
    start,
    wait_until,
)
from tests.shared import REPOSITORY

SIZE = "2200k"  # for two checkpoints and part of a third


def check_stopped(workdir: Path, output: str) -> int:
    """The newest checkpoint of a run that could not save, which its error names."""
    newest = checkpoints(workdir)[-1]
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: saving to ") and f"the newest whole checkpoint is {newest}" in last, output
    assert str(REPOSITORY / "vlmax") not in output, "no traceback through our own code"
    return newest


def test_a_write_that_fails_in_the_background(reference: Path, tmp_path: Path):
    slow = f"{TINY}:slow"
    process = start(tmp_path, config=slow)
    wait_until(lambda: 8 in checkpoints(tmp_path), process)
    largest = 40_000  # bytes of a file: enough for metrics.jsonl, too few for a checkpoint's arrays
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest, largest))
    newest = check_stopped(tmp_path, ended(process, code=1))
    assert newest < 24
    output = run(tmp_path, config=slow)
    assert f"going on after step {newest} of 24" in output
    same_history(tmp_path, reference)


def test_a_disk_without_room(reference: Path, tmp_path: Path):
    disk, after = tmp_path / "disk", tmp_path / "after"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size={SIZE} tmpfs {shlex.quote(str(disk))}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk (unshare -rm)")
    command = shlex.join([sys.executable, "-m", "vlmax.train", "--config", str(TINY), "--workdir", str(disk / "run")])
    copy = shlex.join(["cp", "-r", str(disk / "run"), str(after)])
    script = f"{mount} && {command}; code=$?; {copy}; exit $code"  # the disk is gone when the script ends
    ran = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    output = ran.stdout + ran.stderr
    assert ran.returncode == 1, output[-6000:]
    newest = check_stopped(after, output)
    assert newest < 24 and "No space left on device" in output and "make room" in output
    output = run(after)
    assert f"going on after step {newest} of 24" in output
    same_history(after, reference)
