"""Runs real front doors as real processes, as a user does."""

from __future__ import annotations

import os
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
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(REPOSITORY), **more}


def start(
    workdir: Path, *arguments: str, module: str = "vlmax.train", config: str | Path = TINY, devices: int = 1, **more: str
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
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == code, f"exit code {process.returncode}, expected {code}:\n{output[-6000:]}"
    return output


def run_together(workdir: Path, *arguments: str, processes: int, devices: int, timeout: float = 300) -> list[str]:
    """The same run as several processes joined on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = [
        start(
            workdir,
            *arguments,
            devices=devices,
            VLMAX_COORDINATOR=f"localhost:{port}",
            VLMAX_PROCESSES=str(processes),
            VLMAX_PROCESS=str(i),
        )
        for i in range(processes)
    ]
    try:
        outputs = [p.communicate(timeout=timeout)[0] for p in started]
    finally:
        for process in started:
            process.kill()
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, f"exit code {process.returncode}:\n{output[-6000:]}"
    return outputs


def column(workdir: Path, name: str) -> dict[int, float | str]:
    """step -> value of one metric."""
    return {int(row["step"]): row[name] for row in read_metrics(workdir / "metrics.jsonl") if name in row}


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], timeout: float = 120) -> None:
    """Polls until the condition holds; fails when the process ends before."""
    deadline = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"the process left with {process.returncode}:\n{process.communicate()[0][-6000:]}")
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def steps_written(workdir: Path) -> Callable[[], int]:
    """How many lines of metrics there are."""

    def count() -> int:
        file = workdir / "metrics.jsonl"
        return file.read_bytes().count(b'"train/loss"') if file.exists() else 0

    return count
