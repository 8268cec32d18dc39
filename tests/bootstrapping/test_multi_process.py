import os
import socket
import subprocess
import sys

from tests.bootstrapping.test_bootstrapping import digests, run
from tests.shared import REPOSITORY


def processes(out, fail_at):
    """What two processes print that work on a set together, and stop after so many batches."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, str(REPOSITORY / "tests/bootstrapping/multi_process.py")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [
        subprocess.Popen([*command, str(i), "2", str(port), str(out), str(fail_at)], env=environment, **pipes)
        for i in range(2)
    ]
    try:
        said = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said[0][1] + said[1][1]
    return [out.split()[-1] for out, _ in said]


def test_two_processes_make_the_set_of_one_also_after_a_stop(tmp_path):
    assert processes(tmp_path / "two", 7) == ["stopped", "stopped"]
    finished = list((tmp_path / "two" / "provenance").glob("*.jsonl"))
    assert 1 <= len(finished) < 5
    assert processes(tmp_path / "two", -1) == ["done", "done"]
    run(tmp_path / "one")
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
