import subprocess
import sys
import types

import jax

from vlmax.reporting.memory import memory_metrics


def test_host_memory_grows_with_what_is_held():
    held = 2**28
    growth = (
        "import numpy as np\n"
        "from vlmax.reporting.memory import host_memory_bytes\n"
        "before = host_memory_bytes()\n"
        f"held = np.ones({held}, np.uint8)\n"
        "print(host_memory_bytes() - before)"
    )
    # In a process of its own: what other threads of the tests free meanwhile would count against it.
    found = subprocess.run([sys.executable, "-c", growth], capture_output=True, text=True, check=True)
    assert 0.5 * held < int(found.stdout) < 1.5 * held


def test_the_fullest_device_counts(monkeypatch):
    def device(used):
        statistics = {"bytes_in_use": used, "peak_bytes_in_use": 2 * used, "bytes_limit": 1000}
        return types.SimpleNamespace(memory_stats=lambda: statistics)

    monkeypatch.setattr(jax, "local_devices", lambda: [device(10), device(30), device(20)])
    found = memory_metrics()
    assert found["memory/host_bytes"] > 0
    del found["memory/host_bytes"]
    assert found == {"memory/device_bytes": 30, "memory/device_peak_bytes": 60, "memory/device_limit_bytes": 1000}


def test_devices_without_statistics_give_no_keys():
    assert set(memory_metrics()) == {"memory/host_bytes"}
