"""A training step of one part of a system beside transformers' form of it, run in turn on one machine.

    decoder  the language model of the workload llava-tiny: 8 rows of an image's and a text's tokens, cross-entropy over
             those after image and question
    encoder  the image encoder of the workload clip-vit-b16: 8 images, mean square of the pooled output

A step is forward, loss, backward and AdamW; the same batch at every step, already on the device; float32 in full.

    python -m benchmarks.part_train --peer-python ../peer/bin/python --repeats 3
    python -m benchmarks.part_train --only --part encoder              # one run of vlmax alone, as a JSON line

The peer's half is in part_train_torch.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

from benchmarks.clip_train import record_of

PARTS = {"decoder": "llava-tiny", "encoder": "clip-vit-b16"}
PEERS = ("eager", "compiled")


def decoder_loss(workload: dict, rows: int):
    """The loss of the language model as a function of its parameters, and those parameters."""
    import jax
    import jax.numpy as jnp

    from benchmarks.generate import decoder, image_tokens
    from vlmax.objectives.language import next_token_loss
    from vlmax.objectives.language_device import IGNORED
    from vlmax.sharding.rules import unboxed

    sizes = workload["llm"]
    length = image_tokens(workload) + workload["text_tokens"]
    unlearned = image_tokens(workload) + workload["masked_text_tokens"]
    config = decoder(sizes, unroll=sizes["depth"])
    module = config.build(jnp.float32)
    tokens = jax.random.randint(jax.random.key(1), (rows, length), 0, sizes["vocab"])
    labels = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORED).at[:, : unlearned - 1].set(IGNORED)

    def loss(params, tokens, labels):
        hidden = module.apply({"params": params}, tokens).tokens
        head = module.apply({"params": params}, method="head")
        total, count, _ = next_token_loss(hidden, head, labels, vocab=sizes["vocab"], chunk=rows * length)
        return total / count

    return loss, unboxed(module.init(jax.random.key(0), tokens)["params"]), (tokens, labels)


def encoder_loss(workload: dict, rows: int):
    """The loss of the image encoder as a function of its parameters, and those parameters."""
    import jax
    import jax.numpy as jnp

    from vlmax.models.encoders.vit import ViT
    from vlmax.sharding.rules import unboxed

    sizes = workload["vision"]
    config = ViT(width=sizes["width"], depth=sizes["depth"], heads=sizes["heads"], mlp=sizes["ffn"],
                 patch=sizes["patch"], image=sizes["image"], activation=workload["activation"],
                 unroll=sizes["depth"])  # fmt: skip
    module = config.build(jnp.float32)
    images = jax.random.normal(jax.random.key(1), (rows, sizes["image"], sizes["image"], 3))

    def loss(params, images):
        return jnp.mean(jnp.square(module.apply({"params": params}, images).pooled))

    return loss, unboxed(module.init(jax.random.key(0), images[:1])["params"]), (images,)


def ours(arguments: argparse.Namespace) -> dict:
    """Compiles and times vlmax's step in this process."""
    from vlmax.host_memory import keep_freed_memory

    keep_freed_memory()
    import jax
    import optax

    jax.config.update("jax_default_matmul_precision", "highest")
    workload = json.loads((arguments.bench / "workloads.json").read_text())[PARTS[arguments.part]]
    rows = workload["batch"]["cpu"]
    loss, params, batch = (decoder_loss if arguments.part == "decoder" else encoder_loss)(workload, rows)
    optimizer = optax.adamw(1e-4, weight_decay=0.1)

    def step(params, state, batch):
        value, gradients = jax.value_and_grad(loss)(params, *batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, batch).compile()
    seconds, cpu, losses = [], [], []
    for i in range(arguments.warmup + arguments.steps):
        start, cpu_start = time.perf_counter(), time.process_time()
        params, state, value = jax.block_until_ready(compiled(params, state, batch))
        if i >= arguments.warmup:
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - cpu_start)
            losses.append(float(value))
    return {
        "impl": "vlmax", "part": arguments.part, "batch": rows,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "step_s": statistics.median(seconds), "cpu_s": statistics.median(cpu), "losses": [losses[0], losses[-1]],
    }  # fmt: skip


def compare(arguments: argparse.Namespace) -> None:
    """Runs vlmax and the peers in turn; prints medians and vlmax against each peer."""
    repository = Path(__file__).resolve().parents[1]
    shared = ["--part", arguments.part, "--bench", str(arguments.bench.resolve())]
    shared += ["--steps", str(arguments.steps), "--warmup", str(arguments.warmup)]
    peer = [arguments.peer_python, "-m", "benchmarks.part_train_torch", *shared]
    commands = {"vlmax": [sys.executable, "-m", "benchmarks.part_train", "--only", *shared]}
    commands |= {"eager": peer, "compiled": [*peer, "--compile"]}
    records: dict[str, list[dict]] = {name: [] for name in ("vlmax", *arguments.peers)}
    for _ in range(arguments.repeats):
        for name, found in records.items():
            found.append(record_of(commands[name], repository))
            print(f"  {name:12}{found[-1]['step_s']:9.3f} s", file=sys.stderr, flush=True)
    middle = {n: [statistics.median(r[k] for r in rs) for k in ("step_s", "cpu_s")] for n, rs in records.items()}
    print(f"{arguments.part} of {PARTS[arguments.part]}, batch {records['vlmax'][0]['batch']}, float32, "
          f"{arguments.repeats} runs of each in turn, {arguments.steps} steps a run")  # fmt: skip
    print(f"{'':12}{'parameters':>14}{'s/step':>10}{'CPU s':>10}   these, divided by vlmax's")
    for name, (step, cpu) in middle.items():
        ratios = f"{step / middle['vlmax'][0]:10.2f}{cpu / middle['vlmax'][1]:10.2f}"
        print(f"{name:12}{records[name][0]['parameters']:14,}{step:10.3f}{cpu:10.3f}{ratios}")


def main() -> None:
    """Reads the flags; one run of vlmax, or the comparison."""
    shared = Path(os.environ.get("VLMAX_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    parser = argparse.ArgumentParser(description="a training step of one part beside transformers")
    parser.add_argument("--part", default="decoder", choices=tuple(PARTS))
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a run")
    parser.add_argument("--warmup", type=int, default=3, help="untimed steps before them")
    parser.add_argument("--bench", type=Path, default=shared / "bench", help="where workloads.json is")
    parser.add_argument("--only", action="store_true", help="one run of vlmax in this process, as a JSON line")
    parser.add_argument("--peer-python", help="a Python with the peer's requirements installed")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--repeats", type=int, default=3, help="how often all run in turn")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(ours(arguments)))
    elif arguments.peer_python is None:
        parser.error("--peer-python is needed to run the peers; --only runs vlmax alone")
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
