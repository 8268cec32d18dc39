"""Whether freed memory is kept, and where."""

from __future__ import annotations

import platform

from vlmax.host_memory import keep_freed_memory, only_cpus


def test_accelerators_are_found_without_jax(tmp_path):
    assert only_cpus({}, tmp_path)
    assert only_cpus({"JAX_PLATFORMS": "cpu"}, tmp_path)
    assert not only_cpus({"JAX_PLATFORMS": "tpu,cpu"}, tmp_path)
    (tmp_path / "nvidia0").touch()
    assert not only_cpus({}, tmp_path)
    assert only_cpus({"JAX_PLATFORMS": "cpu"}, tmp_path)


def test_malloc_takes_the_settings_where_there_is_glibc():
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
