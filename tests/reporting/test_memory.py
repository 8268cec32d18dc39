import types

import jax
import numpy as np

from vlmax.reporting.memory import host_memory_bytes, memory_metrics


def test_host_memory_grows_with_what_is_held():
    before = host_memory_bytes()
    held = np.ones(2**25, np.uint8)
    after = host_memory_bytes()
    assert before is not None and after is not None
    assert 0.5 * held.nbytes < after - before < 2 * held.nbytes


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
