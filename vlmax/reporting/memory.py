"""Memory of this host's process and of its devices, in bytes."""

from __future__ import annotations

import os
from pathlib import Path

import jax

_STATISTICS = {
    "bytes_in_use": "memory/device_bytes",
    "peak_bytes_in_use": "memory/device_peak_bytes",
    "bytes_limit": "memory/device_limit_bytes",
}


def host_memory_bytes() -> int | None:
    """Resident memory of this process; None where the system has no /proc (not Linux)."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        return None
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_metrics() -> dict[str, int]:
    """`memory/host_bytes`, and the fullest local device's `memory/device_{bytes,peak_bytes,limit_bytes}`.

    A key is absent where the platform does not tell: CPU devices have no statistics of their own.
    """
    found: dict[str, int] = {}
    host = host_memory_bytes()
    if host is not None:
        found["memory/host_bytes"] = host
    for device in jax.local_devices():
        statistics = device.memory_stats() or {}
        for name, key in _STATISTICS.items():
            if name in statistics:
                found[key] = max(found.get(key, 0), int(statistics[name]))
    return found
