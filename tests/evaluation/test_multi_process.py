import json
import os
import socket
import subprocess
import sys

import pytest

from tests.evaluation import multi_process_tasks
from tests.evaluation.stand_in import Pictures, context, random_pictures
from tests.shared import REPOSITORY
from vlmax.evaluation.retrieval import Retrieval
from vlmax.evaluation.zero_shot import ZeroShot


def test_two_processes_give_the_scores_of_one():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, str(REPOSITORY / "tests/evaluation/multi_process.py")]
    processes = [
        subprocess.Popen(
            [*command, str(i), "2", str(port)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said[0][1] + said[1][1]
    found = [json.loads(out.splitlines()[-1]) for out, _ in said]
    assert found[0] == found[1]

    source = Pictures(
        random_pictures(37, 4, captions=lambda rng: rng.integers(1, 4), label=lambda i, rng: i % 5), broken=(3, 36)
    )
    wanted = Retrieval(source, captions=2, batch_size=16).run(context())
    wanted |= ZeroShot(source, class_names=tuple("abcde"), batch_size=16).run(context())
    wanted |= multi_process_tasks.run()
    for name in ("captions", "vqa"):
        assert found[0].pop(name) == wanted.pop(name)
    assert found[0] == pytest.approx(wanted, abs=1e-12)
