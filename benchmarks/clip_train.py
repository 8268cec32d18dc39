"""A whole CLIP training step of vlmax beside the PyTorch peers of `peer_clip_train.py`, run in turn on one machine.

A step is forward, loss, backward and AdamW, as the trainer runs it, its safety checks and metrics included: the same
batch at every step, already on the device; AdamW decays every parameter alike, no clipping, no schedule; the loss over
the whole batch; the activation of the workload (quick GELU). float32 is full float32. vlmax's images are uint8,
normalised on the device; the peers' are normalised floats.

    python -m benchmarks.clip_train --peer-python ../peer/bin/python --repeats 3
    python -m benchmarks.clip_train --only                          # one run of vlmax alone, as a JSON line

Give both the same cores (`taskset -c 0,1 python -m ...`). CPU seconds are disturbed by other processes far less than
the clock; with `--passive-wait` the peers' waiting threads sleep, which makes theirs work alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

from benchmarks.in_turn import initial_state, record_of

PEERS = ("transformers", "transformers --compile", "open_clip", "open_clip --compile")


def system(workload: dict, dtype: str, remat: str, unroll: bool):
    """The workload's model as an experiment would write it."""
    from vlmax.models.encoders.text import TextEncoder
    from vlmax.models.encoders.vit import ViT
    from vlmax.systems.clip import CLIP

    vision, text = workload["vision"], workload["text"]
    image_encoder = ViT(width=vision["width"], depth=vision["depth"], heads=vision["heads"], mlp=vision["ffn"],
                        patch=vision["patch"], image=vision["image"], activation=workload["activation"],
                        remat=remat, unroll=vision["depth"] if unroll else 1)  # fmt: skip
    text_encoder = TextEncoder(width=text["width"], depth=text["depth"], heads=text["heads"], mlp=text["ffn"],
                               vocab=text["vocab"], context=text["context"], activation=workload["activation"],
                               remat=remat, unroll=text["depth"] if unroll else 1)  # fmt: skip
    return CLIP(image_encoder, text_encoder, embed=workload["embed"], dtype=dtype)


def batch_of(workload: dict, rows: int) -> dict:
    """Random images and texts, each between its two marks."""
    import jax
    import jax.numpy as jnp

    size, length, vocab = workload["vision"]["image"], workload["text"]["context"], workload["text"]["vocab"]
    pixels, words = jax.random.split(jax.random.key(1))
    text = jax.random.randint(words, (rows, length), 0, vocab - 2).at[:, 0].set(vocab - 2).at[:, -1].set(vocab - 1)
    return {"image": jax.random.randint(pixels, (rows, size, size, 3), 0, 256).astype(jnp.uint8), "text": text}


def ours(arguments: argparse.Namespace) -> dict:
    """Compiles and times vlmax's step in this process."""
    from vlmax.host_memory import keep_freed_memory

    if arguments.device == "cpu":
        keep_freed_memory()
    import jax

    from vlmax.training.optimizers import AdamW, Optimizer
    from vlmax.training.schedules import Constant
    from vlmax.training.step import train_step

    if arguments.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    workload = json.loads((arguments.bench / "workloads.json").read_text())[arguments.workload]
    rows = arguments.batch or workload["batch"][arguments.device]
    clip, batch = system(workload, arguments.dtype, arguments.remat, arguments.unroll), batch_of(workload, rows)
    optimizer = Optimizer(AdamW(weight_decay=0.1), Constant(1e-4), decay_multipliers=((".*", 1.0),))
    state, built = initial_state(clip, optimizer, batch)
    began = time.perf_counter()
    step = jax.jit(train_step(clip, built.transformation, built.schedule, seed=0), donate_argnums=0)
    step = step.lower(state, batch).compile()
    compile_s = time.perf_counter() - began
    seconds, cpu, losses = [], [], []
    for i in range(arguments.warmup + arguments.steps):
        start, cpu_start = time.perf_counter(), time.process_time()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        if i >= arguments.warmup:
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - cpu_start)
            losses.append(float(metrics["loss"]))
    return {
        "impl": "vlmax", "workload": arguments.workload, "batch": rows, "dtype": arguments.dtype,
        "remat": arguments.remat, "unroll": arguments.unroll, "samples_per_s": rows / statistics.median(seconds),
        "step_s": {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)},
        "cpu_s": {"min": min(cpu), "median": statistics.median(cpu), "max": max(cpu)},
        "compile_s": compile_s, "temporary_mib": step.memory_analysis().temp_size_in_bytes / 2**20,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.trainable)),
        "losses": [losses[0], losses[-1]], "jax": jax.__version__, "devices": str(jax.devices()),
    }  # fmt: skip


def flags(arguments: argparse.Namespace) -> list[str]:
    """The flags that vlmax and the peers share."""
    values = {name: getattr(arguments, name) for name in ("workload", "device", "dtype", "steps", "warmup", "batch")}
    return [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]


def compare(arguments: argparse.Namespace) -> None:
    """Runs vlmax and the peers in turn; prints every median, and vlmax against each peer."""
    repository = Path(__file__).resolve().parents[1]
    own = [sys.executable, "-m", "benchmarks.clip_train", "--only", "--remat", arguments.remat]
    own += ["--unroll" if arguments.unroll else "--no-unroll"]
    own += ["--bench", str(arguments.bench.resolve()), *flags(arguments)]
    peer = [arguments.peer_python, str(arguments.bench / "peer_clip_train.py"), "--json", *flags(arguments)]
    peer += ["--passive-wait"] * arguments.passive_wait
    commands = {"vlmax": own} | {name: [*peer, "--impl", *name.split()] for name in arguments.peers}
    records: dict[str, list[dict]] = {name: [] for name in commands}
    for _ in range(arguments.repeats):
        for name, command in commands.items():
            records[name].append(record_of(command, repository))
            print(f"  {name:24}{records[name][-1]['step_s']['median']:9.3f} s", file=sys.stderr, flush=True)

    def figures(name: str) -> tuple[float, float, float]:
        """Seconds of a median step, of the fastest step of all runs, CPU seconds of a median step."""
        steps, cpu = ([record[key] for record in records[name]] for key in ("step_s", "cpu_s"))
        fastest = min(step["min"] for step in steps)
        return statistics.median(s["median"] for s in steps), fastest, statistics.median(s["median"] for s in cpu)

    batch, busy = records["vlmax"][0]["batch"], max(r.get("others_share") or 0 for rs in records.values() for r in rs)
    print(f"{arguments.workload}, batch {batch}, {arguments.dtype}, {arguments.repeats} runs of each in turn, "
          f"{arguments.steps} steps a run; other processes took up to {busy:.0%} of the cores")  # fmt: skip
    print(f"{'':24}{'examples/s':>12}{'s/step':>10}{'fastest':>10}{'CPU s':>10}   these, divided by vlmax's")
    own_figures = figures("vlmax")
    for name in records:
        row = figures(name)
        ratios = "".join(f"{theirs / mine:10.2f}" for theirs, mine in zip(row, own_figures, strict=True))
        print(f"{name:24}{batch / row[0]:12.1f}" + "".join(f"{value:10.3f}" for value in row) + ratios)
    if arguments.json:
        with arguments.json.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for rs in records.values() for record in rs)


def main() -> None:
    """Reads the flags; one run of vlmax, or the comparison."""
    shared = Path(os.environ.get("VLMAX_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    parser = argparse.ArgumentParser(description="vlmax's CLIP training step beside its peers")
    parser.add_argument("--workload", default="clip-tiny", help="a CLIP workload of workloads.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="which batch size of the workload")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, help="instead of the workload's own")
    parser.add_argument("--steps", type=int, default=7, help="timed steps of a run")
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps before them")
    parser.add_argument("--remat", default="none", help="vlmax: what the backward pass recomputes")
    parser.add_argument(
        "--unroll", action=argparse.BooleanOptionalAction, default=True, help="vlmax: no loop over the layers"
    )
    parser.add_argument("--bench", type=Path, default=shared / "bench", help="where peer_clip_train.py is")
    parser.add_argument("--only", action="store_true", help="one run of vlmax in this process, as a JSON line")
    parser.add_argument("--peer-python", help="a Python with the peer's requirements installed")
    parser.add_argument("--peers", nargs="+", default=["transformers", "open_clip"], choices=PEERS)
    parser.add_argument("--passive-wait", action="store_true", help="the peers' waiting threads sleep")
    parser.add_argument("--repeats", type=int, default=3, help="how often all run in turn")
    parser.add_argument("--json", type=Path, help="append every record to this file")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(ours(arguments)))
    elif arguments.peer_python is None:
        parser.error("--peer-python is needed to run the peers; --only runs vlmax alone")
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
