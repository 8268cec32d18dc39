"""Runs real front doors as real processes, as a user does."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.shared import REPOSITORY
from vlmax.reporting.metrics import read_metrics

TINY = REPOSITORY / "tests" / "end_to_end" / "tiny_clip.py"


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """The environment of a run on so many virtual CPU devices."""
    ours = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # one process compiles for all that follow
        "PYTHONPATH": str(REPOSITORY),
    }
    return {**os.environ, **ours, **more}


def start(
    workdir: Path,
    *arguments: str,
    module: str = "vlmax.train",
    config: str | Path = TINY,
    devices: int = 1,
    **more: str,
) -> subprocess.Popen[str]:
    """Starts `python -m MODULE --config CONFIG --workdir WORKDIR ...`; its output is one stream of text."""
    command = [sys.executable, "-m", module, "--config", str(config), "--workdir", str(workdir), *arguments]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment(devices, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(workdir: Path, *arguments: str, code: int = 0, timeout: float = 300, **more) -> str:
    """Runs to the end and gives the output; the exit code must be `code`."""
    process = start(workdir, *arguments, **more)
    return ended(process, code, timeout)


def ended(process: subprocess.Popen[str], code: int = 0, timeout: float = 300) -> str:
    """Waits until a process has left with `code` and gives its output."""
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == code, f"exit code {process.returncode}, expected {code}:\n{output[-6000:]}"
    return output


def start_together(
    workdir: Path, *arguments: str, processes: int, devices: int, config: str | Path = TINY
) -> list[subprocess.Popen[str]]:
    """Starts the same run as several processes joined on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start(
            workdir,
            *arguments,
            config=config,
            devices=devices,
            VLMAX_COORDINATOR=f"localhost:{port}",
            VLMAX_PROCESSES=str(processes),
            VLMAX_PROCESS=str(i),
        )
        for i in range(processes)
    ]


def ended_together(started: list[subprocess.Popen[str]], code: int = 0, timeout: float = 300) -> list[str]:
    """Waits until all have left with `code` and gives their outputs."""
    try:
        outputs = [p.communicate(timeout=timeout)[0] for p in started]
    finally:
        for process in started:
            process.kill()
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == code, f"exit code {process.returncode}, expected {code}:\n{output[-6000:]}"
    return outputs


def run_together(
    workdir: Path, *arguments: str, processes: int, devices: int, config: str | Path = TINY, timeout: float = 300
) -> list[str]:
    """The same run as several processes joined on this machine, to the end."""
    started = start_together(workdir, *arguments, processes=processes, devices=devices, config=config)
    return ended_together(started, timeout=timeout)


def column(workdir: Path, name: str) -> dict[int, float | str]:
    """Step -> value of one metric."""
    return {int(row["step"]): row[name] for row in read_metrics(workdir / "metrics.jsonl") if name in row}


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], timeout: float = 120) -> None:
    """Polls until the condition holds; fails when the process ends before."""
    deadline = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"the process left with {process.returncode}:\n{process.communicate()[0][-6000:]}")
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def last_step(workdir: Path, since: float = 0.0) -> int:
    """The last step in metrics.jsonl; 0 where nothing was written after the time `since` (seconds since the epoch)."""
    file = workdir / "metrics.jsonl"
    if not file.exists() or file.stat().st_mtime < since:
        return 0
    return max(column(workdir, "train/loss"), default=0)


def checkpoints(workdir: Path) -> list[int]:
    """Steps with a committed checkpoint, ascending."""
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())


def rewound(run: Path, to: Path, step: int) -> Path:
    """A copy of a run as if it had died when `step` was the newest checkpoint, though later steps were written down."""
    shutil.copytree(run, to)
    assert step in checkpoints(to), f"{run} has checkpoints {checkpoints(to)}, not {step}"
    for later in checkpoints(to):
        if later > step:
            shutil.rmtree(to / "checkpoints" / str(later))
    return to


def same_history(run: Path, other: Path, relative: float = 0.0) -> None:
    """Asserts that two runs saw the same examples and had the same losses, bit for bit or to a relative difference."""
    rows = [[r for r in read_metrics(d / "metrics.jsonl") if "train/loss" in r] for d in (run, other)]
    steps = [[int(r["step"]) for r in found] for found in rows]
    assert steps[0] == steps[1] == list(range(1, len(steps[0]) + 1)), f"steps written: {steps}"
    for ours, theirs in zip(*rows, strict=True):
        step, loss, reference = ours["step"], float(ours["train/loss"]), float(theirs["train/loss"])
        assert ours["data/digest"] == theirs["data/digest"], f"other examples at step {step}"
        assert abs(loss - reference) <= relative * abs(reference), f"step {step}: loss {loss!r}, not {reference!r}"
