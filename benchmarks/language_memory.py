"""Memory and collectives of the chunked next-token loss, compiled for TPUs that are not there.

    python -m benchmarks.language_memory [--topology v5e:2x4] [--batch 8] [--length 2048] [--vocab 128256] [--chunk 256]

Value and gradient at the size of LLaMA 3 8B, on one chip and on meshes of all, with a head that trains (float32) and
a frozen one (bfloat16); the tokens are bfloat16. XLA's TPU compiler comes with `pip install "jax[tpu]"` and needs no
TPU. Prints per chip the arguments, results, temporary and peak memory, the largest array of the program, and the
collectives as they stand in the program, loop bodies once. Nothing is run.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.contrastive_memory import Program, read, tpu_mesh
from vlmax.objectives.language import Axes, next_token_loss

MESHES: dict[str, tuple[dict[str, int], Axes]] = {
    "1 chip": ({"data": 1}, Axes()),
    "data=8": ({"data": 8}, Axes(batch=("data",))),
    "fsdp=8": ({"fsdp": 8}, Axes(batch=("fsdp",), embed=("fsdp",))),
    "fsdp=8, over the vocabulary": ({"fsdp": 8}, Axes(batch=("fsdp",), vocab=("fsdp",))),
    "tensor=8": ({"tensor": 8}, Axes(vocab=("tensor",))),
    "data=2 x fsdp=2 x tensor=2": (
        {"data": 2, "fsdp": 2, "tensor": 2},
        Axes(batch=("data", "fsdp"), vocab=("tensor",), embed=("fsdp",)),
    ),
}
SIZES = {"batch": 8, "length": 2048, "width": 4096, "vocab": 128256, "chunk": 256}


def compile_loss(topology: str, name: str, trains: bool, **sizes: int) -> Program:
    """Compiles value and gradient on the mesh of that name; `sizes` beside `SIZES`."""
    size = SIZES | sizes
    axes_of_mesh, axes = MESHES[name]
    mesh = tpu_mesh(topology, axes_of_mesh)
    tokens = NamedSharding(mesh, PartitionSpec(axes.batch or None))
    matrix = NamedSharding(mesh, PartitionSpec(axes.embed or None, axes.vocab or None))

    def objective(hidden, head, labels):
        loss, count, _ = next_token_loss(hidden, head, labels, vocab=size["vocab"], chunk=size["chunk"], axes=axes)
        return loss / count

    rows = (
        -(-size["vocab"] // (128 * mesh.size)) * 128 * mesh.size
    )  # whole lanes on every chip, as vocab_multiple gives
    start = time.perf_counter()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        gradients = (tokens, matrix) if trains else (tokens,)
        step = jax.jit(
            jax.value_and_grad(objective, argnums=(0, 1) if trains else (0,)), out_shardings=(None, gradients)
        )
        compiled = step.lower(
            jax.ShapeDtypeStruct((size["batch"], size["length"], size["width"]), jnp.bfloat16, sharding=tokens),
            jax.ShapeDtypeStruct((size["width"], rows), jnp.float32 if trains else jnp.bfloat16, sharding=matrix),
            jax.ShapeDtypeStruct((size["batch"], size["length"]), jnp.int32, sharding=tokens),
        ).compile()
    return read(compiled, time.perf_counter() - start)


def main() -> None:
    """Prints a block per mesh, with the head trained and frozen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x4", help="of eight chips")
    parser.add_argument("--mesh", nargs="+", default=list(MESHES), choices=list(MESHES))
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    sizes = {name: getattr(args, name) for name in SIZES}
    shape = " x ".join(str(sizes[name]) for name in ("batch", "length", "vocab"))
    for name in args.mesh:
        for trains in (True, False):
            program = compile_loss(args.topology, name, trains, **sizes)
            size, array = program.largest()
            print(
                f"{args.topology} {name}, {shape}, head {'trained' if trains else 'frozen'}, chunk {args.chunk}: "
                f"temporaries {program.temporary_bytes / 2**20:.1f} MiB, peak {program.peak_bytes / 2**20:.1f} MiB, "
                f"largest array {array} {size / 2**20:.1f} MiB, compiled in {program.seconds:.1f} s"
            )
            for kind, count in sorted(program.collectives.items()):
                print(f"    {count} x {kind}")


if __name__ == "__main__":
    main()
