"""How long the first batch takes at step 0 and at step 1,000,000 of a source of ten million records, and what it holds.

    python benchmarks/seek.py

Prints the median seconds from opening the pipeline to its first batch on the device, and how much the process grew.
"""

from __future__ import annotations

import gc
import resource
import statistics
import time

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vlmax.data.images import ImageTransform, Squash
from vlmax.data.pipeline import Data, Pipeline, Weighted
from vlmax.data.preprocess import ImageOnly
from vlmax.data.sources.shapes import Shapes

TRIES = 15


def first_batch(records: int, step: int) -> float:
    """Seconds to the first batch of `step`."""
    data = Data((Weighted(Shapes(count=records)),), ImageOnly(ImageTransform(Squash(64))), batch_size=256)
    sharding = NamedSharding(Mesh(jax.devices()[:1], ("data",)), PartitionSpec("data"))
    start = time.perf_counter()
    with Pipeline(data, sharding, seed=0, start_step=step) as pipeline:
        jax.block_until_ready(next(pipeline).arrays)
        return time.perf_counter() - start


def main() -> None:
    """Measures in turn, so that a busy machine slows all alike."""
    cases = ((10_000, 0), (10_000_000, 0), (10_000_000, 1_000_000))
    first_batch(10_000, 0)
    seconds = {case: [] for case in cases}
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(TRIES):
        for case in cases:
            seconds[case].append(first_batch(*case))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    for (records, step), taken in seconds.items():
        print(f"{records:>10,} records, step {step:>9,}: first batch of 256 after {statistics.median(taken):.4f} s")
    ratio = statistics.median(seconds[cases[2]]) / statistics.median(seconds[cases[1]])
    print(f"step 1,000,000 against step 0: {ratio:.3f}; peak memory grew by {grown:.1f} MiB")


if __name__ == "__main__":
    main()
