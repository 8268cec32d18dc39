"""Runs that die and go on: bit for bit as if nothing had happened, on the same devices or others."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest

from tests.end_to_end.process import (
    TINY,
    checkpoints,
    ended,
    last_step,
    rewound,
    run,
    run_together,
    same_history,
    start,
    wait_until,
)

SLOW = f"{TINY}:slow"  # the same examples and losses, at a pace at which a run can be killed in its middle


def kill_at(workdir: Path, step: int, delay: float, *arguments: str) -> None:
    """Starts the run and kills it some seconds after it has written a step: at least `step`, and one that is new."""
    since, seen = time.time(), checkpoints(workdir)[-1] if checkpoints(workdir) else 0
    process = start(workdir, *arguments, config=SLOW)
    try:
        wait_until(lambda: last_step(workdir, since) > max(step - 1, seen), process)
        time.sleep(delay)
    finally:
        process.kill()
        process.communicate()


def killed_again_and_again(workdir: Path, times: int, steps: int, seed: int) -> None:
    """Kills a run so often, at random steps that grow, then lets it end."""
    draw, arguments = random.Random(seed), ("--steps", str(steps))
    for step in sorted(draw.sample(range(1, steps - 4), times)):
        kill_at(workdir, step, draw.uniform(0, 0.15), *arguments)
        assert last_step(workdir) < steps, "the run ended before it was killed"
    run(workdir, *arguments, config=SLOW)


def test_kill_and_resume(reference: Path, tmp_path: Path):
    killed_again_and_again(tmp_path, times=2, steps=24, seed=7)
    same_history(tmp_path, reference)


@pytest.mark.slow
def test_kill_and_resume_ten_times(tmp_path: Path):
    run(tmp_path / "whole", "--steps", "72")
    killed_again_and_again(tmp_path / "killed", times=10, steps=72, seed=1)
    same_history(tmp_path / "killed", tmp_path / "whole")


def test_resume_on_half_the_devices(eight: Path, tmp_path: Path):
    workdir = rewound(eight, tmp_path / "run", 12)
    output = run(workdir, "--mesh.data", "4", devices=4)
    assert "going on after step 12 of 24" in output
    same_history(workdir, eight, 1e-5)


@pytest.mark.slow
def test_resume_as_fsdp_on_half_the_devices(eight: Path, tmp_path: Path):
    workdir = rewound(eight, tmp_path / "run", 12)
    run(workdir, "--mesh.data", "2", "--mesh.fsdp", "2", devices=4)
    same_history(workdir, eight, 1e-5)


def test_resume_with_two_processes(reference: Path, tmp_path: Path):
    workdir = rewound(reference, tmp_path / "run", 12)
    outputs = run_together(workdir, processes=2, devices=1)
    assert "going on after step 12 of 24" in outputs[0]
    same_history(workdir, reference, 1e-5)


@pytest.mark.slow
def test_resume_with_one_process_instead_of_two(reference: Path, tmp_path: Path):
    run_together(tmp_path / "two", "--checkpoints.keep-every", "12", processes=2, devices=2)
    workdir = rewound(tmp_path / "two", tmp_path / "one", 12)
    run(workdir)
    same_history(workdir, reference, 1e-5)


def test_damaged_newest_checkpoint(reference: Path, tmp_path: Path):
    workdir = rewound(reference, tmp_path / "run", 20)
    for file in (workdir / "checkpoints" / "20" / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    output = run(workdir)
    assert "checkpoint 20 is damaged" in output and "going on after step 12 of 24" in output
    same_history(workdir, reference)
    assert (workdir / "checkpoints" / "damaged-20").is_dir(), "what is damaged is kept for a person to look at"


def test_checkpoint_of_a_newer_format(reference: Path, tmp_path: Path):
    workdir = rewound(reference, tmp_path / "run", 12)
    file = workdir / "checkpoints" / "12" / "data" / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    output = run(workdir, code=2)
    assert "format 99" in output and "Traceback" not in output
    assert checkpoints(workdir) == [12], "a newer checkpoint is not damage"


def test_changed_experiment(reference: Path, tmp_path: Path):
    workdir = rewound(reference, tmp_path / "run", 20)
    change = ("--optimizer.algorithm.b2", "0.9")
    output = run(workdir, *change, code=2)
    assert "optimizer.algorithm.b2: 0.98 -> 0.9" in output and "--accept-changes" in output
    output = run(workdir, *change, "--accept-changes")
    assert "optimizer.algorithm.b2: 0.98 -> 0.9" in output and "going on after step 20 of 24" in output
    stored = json.loads((workdir / "experiment.json").read_text())["experiment"]
    assert stored["optimizer"]["algorithm"]["b2"] == 0.9


def test_directory_of_another_experiment(reference: Path, tmp_path: Path):
    before = (reference / "metrics.jsonl").read_bytes()
    output = run(reference, "--name", "another", code=2)
    assert "'tiny_clip'" in output and "'another'" in output and "--workdir" in output and "Traceback" not in output
    assert (reference / "metrics.jsonl").read_bytes() == before


def test_finished_run_started_again(evaluated: tuple[Path, str], tmp_path: Path):
    finished, output = evaluated
    workdir = shutil.copytree(finished, tmp_path / "run")
    again = run(workdir, config=f"{TINY}:evaluated")
    assert scores(again) == scores(output)
    assert "compiled the train step" not in again
    assert (workdir / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


def scores(output: str) -> list[str]:
    """The rows of the final table of scores."""
    rows = sorted({" ".join(line.split()) for line in output.splitlines() if line.startswith("│ eval/")})
    assert len(rows) > 4
    return rows


def test_evaluate_gives_the_scores_of_the_run(evaluated: tuple[Path, str], tmp_path: Path):
    finished, output = evaluated
    workdir = shutil.copytree(finished, tmp_path / "run")
    alone = ended(start(workdir, module="vlmax.evaluate", config=f"{TINY}:evaluated"))
    assert scores(alone) == scores(output)
