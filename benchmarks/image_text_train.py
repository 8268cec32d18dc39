"""A whole training step of BLIP and of BLIP-2's first stage beside the same in transformers' modules, in one run.

    blip-tiny          ViT and BERT, slow twins of both, queues: ITC, ITM with hard negatives, LM (three losses)
    blip2-stage1-tiny  a Q-Former on a frozen ViT: ITC, ITM with hard negatives, ITG

A step is forward, losses, backward and AdamW (decay of every parameter, no clipping, no schedule), of the same batch at
every step; vlmax's is the trainer's, its checks and metrics included. float32 in full. The sizes are in
image_text_workloads.json, the peer's half in image_text_train_torch.py.

    python -m benchmarks.image_text_train --peer-python ../peer/bin/python --workload blip-tiny
    python -m benchmarks.image_text_train --only --workload blip2-stage1-tiny    # vlmax alone, as a JSON line
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from benchmarks.clip_train import record_of

WORKLOADS = json.loads(Path(__file__).with_name("image_text_workloads.json").read_text())
PEERS = ("eager", "compiled")


def image_encoder(workload: dict):
    """The ViT of a workload."""
    from vlmax.models.encoders.vit import blip_vit_b16

    sizes = {name: workload[name] for name in ("image", "patch", "width", "depth", "heads", "mlp")}
    return blip_vit_b16(**sizes, unroll=workload["depth"])


def blip(workload: dict):
    """BLIP's pretraining."""
    from vlmax.models.decoders.bert import BERT
    from vlmax.systems.blip import BLIP
    from vlmax.systems.blip_alignment import Alignment
    from vlmax.systems.blip_model import MED

    text = workload["text"]
    bert = {name: text[name] for name in ("width", "depth", "heads", "mlp", "vocab")}
    return BLIP(
        model=MED(
            image=image_encoder(workload),
            text=BERT(**bert, context=text["length"], token_types=0, unroll=text["depth"]),
            pad=0,
            decode=1,
            encode=2,
            dtype="float32",
        ),
        alignment=Alignment(embed=workload["embed"], queue=workload["queue"]),
        length=text["length"],
        vocabulary_chunk=text["length"] * workload["batch"],
    )


def blip2(workload: dict):
    """BLIP-2's first stage."""
    from vlmax.models.connectors.qformer import QFormer
    from vlmax.systems.blip2 import BLIP2

    text = workload["text"]
    bert = {name: text[name] for name in ("width", "depth", "heads", "mlp", "vocab")}
    return BLIP2(
        image=image_encoder(workload),
        qformer=QFormer(
            **bert,
            queries=workload["queries"],
            cross_width=workload["width"],
            context=text["length"],
            unroll=text["depth"],
        ),
        embed=workload["embed"],
        length=text["length"],
        decode=1,
        chunk=text["length"] * workload["batch"],
        dtype="float32",
    )


def batch_of(workload: dict) -> dict:
    """Random images and texts without padding."""
    import jax
    import jax.numpy as jnp

    text, rows = workload["text"], workload["batch"]
    pixels, words = jax.random.split(jax.random.key(1))
    image = jax.random.randint(pixels, (rows, workload["image"], workload["image"], 3), 0, 256)
    return {
        "image": image.astype(jnp.uint8),
        "text": jax.random.randint(words, (rows, text["length"]), 3, text["vocab"]),
    }


def initial_state(system, optimizer, batch: dict):
    """The state before step 1 and the optimizer that was built for it."""
    import jax
    import jax.numpy as jnp

    from vlmax.sharding.rules import unboxed
    from vlmax.training.groups import split
    from vlmax.training.state import TrainState

    boxed, carried = system.init(jax.random.key(0), {name: value[:1] for name, value in batch.items()})
    built = optimizer.build(boxed, 1000, locked=system.locked())
    trainable, frozen = split(unboxed(boxed), built.frozen, "float32")
    moments, zero = built.transformation.init(trainable), jnp.zeros((), jnp.int32)
    return TrainState(zero, trainable, frozen, moments, unboxed(carried), {}, zero + 0, zero + 0), built


def ours(arguments: argparse.Namespace) -> dict:
    """Compiles and times vlmax's step in this process."""
    from vlmax.host_memory import keep_freed_memory

    keep_freed_memory()
    import jax

    from vlmax.training.optimizers import AdamW, Optimizer
    from vlmax.training.schedules import Constant
    from vlmax.training.step import train_step

    jax.config.update("jax_default_matmul_precision", "highest")
    workload = WORKLOADS[arguments.workload]
    system = (blip2 if "queries" in workload else blip)(workload)
    batch = batch_of(workload)
    optimizer = Optimizer(AdamW(weight_decay=0.1), Constant(1e-4), decay_multipliers=((".*", 1.0),))
    state, built = initial_state(system, optimizer, batch)
    step = jax.jit(train_step(system, built.transformation, built.schedule, seed=0), donate_argnums=0)
    step = step.lower(state, batch).compile()
    seconds, cpu, losses = [], [], []
    for i in range(arguments.warmup + arguments.steps):
        start, cpu_start = time.perf_counter(), time.process_time()
        state, metrics = jax.block_until_ready(step(state, batch))
        if i >= arguments.warmup:
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - cpu_start)
            losses.append(float(metrics["loss"]))
    return {
        "impl": "vlmax", "workload": arguments.workload, "batch": workload["batch"],
        "parameters": sum(x.size for x in jax.tree.leaves(state.trainable)),
        "step_s": statistics.median(seconds), "cpu_s": statistics.median(cpu), "losses": [losses[0], losses[-1]],
    }  # fmt: skip


def compare(arguments: argparse.Namespace) -> None:
    """Runs vlmax and the peers in turn; prints medians and vlmax against each peer."""
    repository = Path(__file__).resolve().parents[1]
    shared = ["--workload", arguments.workload, "--steps", str(arguments.steps), "--warmup", str(arguments.warmup)]
    peer = [arguments.peer_python, "-m", "benchmarks.image_text_train_torch", *shared]
    commands = {"vlmax": [sys.executable, "-m", "benchmarks.image_text_train", "--only", *shared]}
    commands |= {"eager": peer, "compiled": [*peer, "--compile"]}
    records: dict[str, list[dict]] = {name: [] for name in ("vlmax", *arguments.peers)}
    for _ in range(arguments.repeats):
        for name, found in records.items():
            found.append(record_of(commands[name], repository))
            print(f"  {name:12}{found[-1]['step_s']:9.3f} s", file=sys.stderr, flush=True)
    middle = {n: [statistics.median(r[k] for r in rs) for k in ("step_s", "cpu_s")] for n, rs in records.items()}
    print(f"{arguments.workload}, batch {records['vlmax'][0]['batch']}, float32, {arguments.repeats} runs of each in "
          f"turn, {arguments.steps} steps a run")  # fmt: skip
    print(f"{'':12}{'trained':>14}{'s/step':>10}{'CPU s':>10}   these, divided by vlmax's")
    for name, (step, cpu) in middle.items():
        ratios = f"{step / middle['vlmax'][0]:10.2f}{cpu / middle['vlmax'][1]:10.2f}"
        print(f"{name:12}{records[name][0]['parameters']:14,}{step:10.3f}{cpu:10.3f}{ratios}")


def main() -> None:
    """Reads the flags; one run of vlmax, or the comparison."""
    parser = argparse.ArgumentParser(description="training steps of BLIP and BLIP-2 beside transformers' modules")
    parser.add_argument("--workload", default="blip-tiny", choices=tuple(WORKLOADS))
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a run")
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps before them")
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
