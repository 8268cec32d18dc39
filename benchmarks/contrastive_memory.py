"""Memory and collectives of the contrastive losses, compiled for a TPU pod that is not there.

    python benchmarks/contrastive_memory.py [--topology v5e:16x16 v6e:16x16] [--batch 32768] [--width 512]

Value and gradient of each loss, rows sharded over all chips; XLA's TPU compiler comes with `pip install "jax[tpu]"`
and needs no TPU. Prints per chip the temporary and the peak memory, the largest array of the program, whether any array
has the size of the square, and the collectives as they stand in the program, loop bodies once. Nothing is run.
"""

from __future__ import annotations

import argparse
import collections
import math
import os
import re
import time
from typing import NamedTuple

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vlmax.objectives.contrastive import sigmoid_contrastive, softmax_contrastive

TOPOLOGIES = ("v5e:16x16", "v6e:16x16", "v5p:8x8x4")
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "u8": 1, "s8": 1}
_ARRAY = re.compile(r"\b(f32|s32|u32|bf16|pred|u8|s8)\[([\d,]+)\]")
_COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\(")


class Program(NamedTuple):
    """What the compiler says about one loss on one topology, per chip; sizes in bytes."""

    temporary_bytes: int  # in main memory
    peak_bytes: int  # arguments, results and on-chip arrays too
    arrays: set[tuple[str, tuple[int, ...]]]
    collectives: collections.Counter[str]
    seconds: float

    def largest(self) -> tuple[int, str]:
        """Bytes and type of the largest array of the program."""
        return max((_BYTES[kind] * math.prod(shape), f"{kind}{list(shape)}") for kind, shape in self.arrays)

    def has_square(self, batch: int) -> bool:
        """Whether any array, in any layout, has as many elements as the [B, B] matrix."""
        return any(math.prod(shape) >= batch * batch for _, shape in self.arrays)


def compile_loss(loss: str, mesh: Mesh, batch: int, width: int, chunk: int, dtype: jnp.dtype) -> Program:
    """Compiles value and gradient of `loss` ('softmax' or 'sigmoid') with rows sharded over all axes of the mesh."""
    axes = tuple(mesh.axis_names)

    def objective(image, text, log_scale, bias):
        if loss == "softmax":
            return softmax_contrastive(image, text, log_scale, axes=axes, chunk=chunk)[0]
        return sigmoid_contrastive(image, text, log_scale, bias, axes=axes, chunk=chunk)[0]

    rows, one = NamedSharding(mesh, PartitionSpec(axes)), NamedSharding(mesh, PartitionSpec())
    features = jax.ShapeDtypeStruct((batch, width), dtype, sharding=rows)
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=one)
    start = time.perf_counter()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        step = jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2, 3)))
        compiled = step.lower(features, features, scalar, scalar).compile()
    return read(compiled, time.perf_counter() - start)


def read(compiled: jax.stages.Compiled, seconds: float = 0.0) -> Program:
    """Memory, array shapes and collectives of a compiled program."""
    text, memory = compiled.as_text(), compiled.memory_analysis()
    if text is None or memory is None:
        raise RuntimeError("this compiler gives neither its program nor its memory")
    shapes = {(kind, tuple(map(int, dims.split(",")))) for kind, dims in _ARRAY.findall(text)}
    collectives: collections.Counter[str] = collections.Counter()
    for result, kind, _ in _COLLECTIVE.findall(text):
        collectives[" ".join([kind, *(f"{dtype}[{dims}]" for dtype, dims in _ARRAY.findall(result))])] += 1
    return Program(memory.temp_size_in_bytes, memory.peak_memory_in_bytes, shapes, collectives, seconds)


def tpu_mesh(topology: str, axes: dict[str, int] | None = None) -> Mesh:
    """A mesh over the chips of a topology that is not there; one axis `data` unless `axes` says otherwise."""
    devices = topologies.get_topology_desc(topology_name=topology, platform="tpu").devices
    axes = axes or {"data": len(devices)}
    return jax.make_mesh(tuple(axes.values()), tuple(axes), (AxisType.Auto,) * len(axes), devices=devices)


def main() -> None:
    """Prints a block per topology, dtype and loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", nargs="+", default=TOPOLOGIES)
    parser.add_argument("--batch", type=int, default=32768)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=4096)
    args = parser.parse_args()
    for topology in args.topology:
        mesh = tpu_mesh(topology)
        for dtype in (jnp.float32, jnp.bfloat16):
            for loss in ("softmax", "sigmoid"):
                program = compile_loss(loss, mesh, args.batch, args.width, args.chunk, dtype)
                size, array = program.largest()
                print(
                    f"{topology} {mesh.size} chips, {loss}, {args.batch} x {args.width} {jnp.dtype(dtype).name}, "
                    f"chunk {args.chunk}: temporaries {program.temporary_bytes / 2**20:.2f} MiB, "
                    f"peak {program.peak_bytes / 2**20:.2f} MiB, largest array {array} {size / 2**20:.2f} MiB, "
                    f"square {'PRESENT' if program.has_square(args.batch) else 'absent'}, "
                    f"compiled in {program.seconds:.1f} s"
                )
                for kind, count in sorted(program.collectives.items()):
                    print(f"    {count} x {kind}")


if __name__ == "__main__":
    main()
