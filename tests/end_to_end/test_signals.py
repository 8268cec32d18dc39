"""What interrupts a run: SIGTERM, a step that never ends, losses that are not numbers."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path

import pytest

from tests.end_to_end.process import (
    TINY,
    checkpoints,
    column,
    ended,
    ended_together,
    last_step,
    run,
    run_together,
    same_history,
    start,
    start_together,
    wait_until,
)
from tests.shared import REPOSITORY

SLOW = f"{TINY}:slow"
GRACE = 10.0  # seconds from the signal to the end of the process


def test_sigterm(reference: Path, tmp_path: Path):
    process = start(tmp_path, config=SLOW)
    wait_until(lambda: last_step(tmp_path) >= 5, process)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    output = ended(process, code=75)
    assert time.monotonic() - began <= GRACE
    stopped = last_step(tmp_path)
    assert f"SIGTERM: saved after step {stopped} of 24" in output and "Traceback" not in output
    assert checkpoints(tmp_path)[-1] == stopped < 24
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))
    output = run(tmp_path, config=SLOW)
    assert f"going on after step {stopped} of 24" in output
    same_history(tmp_path, reference)


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes(reference: Path, tmp_path: Path):
    processes = start_together(tmp_path, processes=2, devices=1, config=SLOW)
    wait_until(lambda: last_step(tmp_path) >= 5, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    began = time.monotonic()
    first, second = ended_together(processes, code=75)
    assert time.monotonic() - began <= GRACE
    stopped = last_step(tmp_path)
    assert f"saved after step {stopped} of 24" in first and f"SIGTERM: saved after step {stopped} of 24" in second
    assert checkpoints(tmp_path)[-1] == stopped < 24
    run_together(tmp_path, processes=2, devices=1, config=SLOW)
    same_history(tmp_path, reference, 1e-5)


@pytest.mark.slow
def test_sigterm_on_the_quickstart(tmp_path: Path):
    process = start(tmp_path, config=REPOSITORY / "experiments" / "clip_shapes.py")
    wait_until(lambda: last_step(tmp_path) >= 10, process, timeout=300)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    ended(process, code=75)
    assert time.monotonic() - began <= GRACE
    assert checkpoints(tmp_path), "the state is saved"
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))


def test_watchdog_ends_a_run_that_hangs(reference: Path, tmp_path: Path):
    began = time.monotonic()
    output = run(tmp_path, "--safety.step-timeout-seconds", "5", config=f"{TINY}:stuck", code=1)
    assert time.monotonic() - began < 120
    assert 0 < last_step(tmp_path) < 4
    assert "Timeout" in output and "loop.py" in output, "where the main thread waits"
    assert "tiny_clip.py" in output and "__getitem__" in output, "where the thread that reads hangs"


def test_losses_that_are_not_finite(tmp_path: Path):
    output = run(tmp_path, "--safety.nonfinite-steps", "3", config=f"{TINY}:breaks", code=1)
    assert "not finite 3 times in a row" in output and "optimizer.schedule.peak" in output
    assert "Traceback" not in output
    losses, norms = column(tmp_path, "train/loss"), column(tmp_path, "train/parameter_norm")
    assert [step for step, loss in losses.items() if math.isnan(float(loss))] == list(range(7, max(losses) + 1))
    assert {norms[step] for step in range(7, max(losses) + 1)} == {norms[6]}, "a skipped step changes no parameter"
    assert checkpoints(tmp_path)[-1] == max(losses) <= 10
    output = run(tmp_path, "--system.after", "100", "--accept-changes", config=f"{TINY}:breaks")
    assert "step 24/24" in output
    losses = column(tmp_path, "train/loss")
    assert all(math.isfinite(float(losses[step])) for step in range(checkpoints(tmp_path)[0], 25))


def test_an_update_that_is_not_finite_is_never_saved(tmp_path: Path):
    output = run(tmp_path, "--optimizer.schedule.peak", "1e38", code=1)
    assert "an update that is not finite of a gradient that is" in output and "Traceback" not in output
    assert not checkpoints(tmp_path)
