"""A sharded checkpoint onto a mesh of 8: seconds beside reading its files, and host memory beyond the arrays.

Writes a LLaMA in bfloat16 as transformers does, in files of at most `--shard-gb`, and loads it in processes of their
own onto eight virtual CPU devices, from files that are not in the page cache (where the kernel lets go of them) and
from files that are. Reading the files is one `read` after the other into one buffer, in the same state of the cache;
holding them is the same into fresh memory, which the arrays need in any case: where a hypervisor takes back what is
free, its first touch costs more than reading.

    python -m benchmarks.load --gb 4

Memory is sampled every 5 ms: anonymous memory alone, which is what the process cannot give back, and all that is
resident, pages of the files included. The arrays lie in that same memory, as the devices are CPUs; they are taken off.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

DEVICES = 8


def main() -> None:
    """Writes the checkpoint and measures."""
    flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    flags.add_argument("--gb", type=float, default=4.0, help="size of the checkpoint in GB")
    flags.add_argument("--shard-gb", type=float, default=1.0, help="largest file in GB")
    flags.add_argument("--dtype", default="bfloat16", help="of the arrays: bfloat16, as it is stored, or float32")
    flags.add_argument("--folder", type=Path, help="where to write it; else a temporary folder")
    flags.add_argument("--child", choices=("write", "read", "hold", "load"), help=argparse.SUPPRESS)
    options = flags.parse_args()
    if options.child:
        return print(json.dumps(globals()[options.child](options)))
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary) / "model"
        if not (options.folder / "config.json").is_file():
            child(options, "write")
        for cached in (False, True):
            found = {}
            for part in ("read", "hold", "load"):
                warm(options.folder, cached)
                found |= child(options, part)
            seconds = {part: found[f"{part}_seconds"] for part in ("read", "hold", "load")}
            ratios = (f"load / {part} {seconds['load'] / seconds[part]:.2f}" for part in ("read", "hold"))
            state = "in the page cache" if cached else "not cached"
            figures = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
            print(f"files {state}: {figures}, {', '.join(ratios)}")


def child(options: argparse.Namespace, part: str) -> dict[str, float]:
    """What a process of its own measures."""
    command = [sys.executable, "-m", "benchmarks.load", "--child", part, "--folder", str(options.folder)]
    command += ["--gb", str(options.gb), "--shard-gb", str(options.shard_gb), "--dtype", options.dtype]
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)


def warm(folder: Path, cached: bool) -> None:
    """Puts the files into the page cache, or asks the kernel to let go of them."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            if cached:
                while file.read(1 << 26):
                    pass
            else:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write(options: argparse.Namespace) -> dict[str, float]:
    """A LLaMA of that size with random values."""
    import ml_dtypes
    import numpy as np

    from vlmax.interop.exporting import export
    from vlmax.interop.families import of_config
    from vlmax.interop.model import outline
    from vlmax.models.decoders.llama import LLaMA

    def shapes(depth):
        config = LLaMA(width=4096, depth=depth, heads=32, kv_heads=8, mlp=14_336, vocab=32_000)
        return config, outline(config, of_config(config)).shapes()

    def size(depth):
        return 2 * sum(int(np.prod(shape)) for shape in shapes(depth)[1].values())

    depth = max(1, round((options.gb * 1e9 - size(1)) / (size(2) - size(1))) + 1)
    config, found = shapes(depth)
    block = np.random.default_rng(0).normal(size=1 << 20).astype(ml_dtypes.bfloat16)
    arrays = {path: np.resize(block, shape) for path, shape in found.items()}
    export(options.folder, config, arrays, shard_bytes=int(options.shard_gb * 1e9))
    return {"gigabytes": size(depth) / 1e9, "layers": depth}


def read(options: argparse.Namespace) -> dict[str, float]:
    """Seconds to read the files into one buffer."""
    buffer, total = bytearray(1 << 26), 0
    start = time.perf_counter()
    for path in sorted(options.folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return {"gigabytes": total / 1e9, "read_seconds": time.perf_counter() - start}


def hold(options: argparse.Namespace) -> dict[str, float]:
    """Seconds to read the files into fresh memory, as much as the arrays take in any case."""
    import numpy as np

    from vlmax.interop.reading import zeros

    held = []
    start = time.perf_counter()
    for path in sorted(options.folder.glob("*.safetensors")):
        held.append(zeros((path.stat().st_size,), np.dtype(np.uint8)))
        with path.open("rb", buffering=0) as file:
            done = 0
            while count := file.readinto(memoryview(held[-1])[done : done + (1 << 26)]):
                done += count
    return {"hold_seconds": time.perf_counter() - start}


class Memory(threading.Thread):
    """Samples what the process holds, in bytes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.anonymous = self.resident = 0
        self.done = threading.Event()

    def run(self):
        """Until `done`."""
        while not self.done.wait(0.005):
            anonymous, resident = now()
            self.anonymous, self.resident = max(self.anonymous, anonymous), max(self.resident, resident)


def now() -> tuple[int, int]:
    """Anonymous and all resident memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("RssAnon", "VmRSS"))}
    return int(found["RssAnon"]) * 1024, int(found["VmRSS"]) * 1024


def load(options: argparse.Namespace) -> dict[str, float]:
    """Seconds to load, and memory beyond what was there before and the arrays."""
    import jax

    from vlmax.interop.loading import open_model
    from vlmax.sharding.mesh import Mesh

    mesh = Mesh(data=1, fsdp=DEVICES).build()
    jax.block_until_ready(jax.device_put(0))
    before, memory = now(), Memory()
    memory.start()
    start = time.perf_counter()
    arrays = open_model(options.folder).arrays(mesh, options.dtype)
    seconds = time.perf_counter() - start
    memory.done.set()
    memory.join()
    held = sum(shard.data.nbytes for array in arrays.values() for shard in array.addressable_shards)
    return {
        "load_seconds": seconds,
        "arrays_gb": held / 1e9,
        "beyond_the_arrays_gb": (memory.anonymous - before[0] - held) / 1e9,
        "with_pages_of_files_gb": (memory.resident - before[1] - held) / 1e9,
    }


if __name__ == "__main__":
    main()
