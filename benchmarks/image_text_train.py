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
from pathlib import Path

from benchmarks.in_turn import compare, initial_state, parser_of, timed

WORKLOADS = json.loads(Path(__file__).with_name("image_text_workloads.json").read_text())


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

    def advance() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(step(state, batch))
        return float(metrics["loss"])

    times = timed(advance, arguments)
    parameters = sum(x.size for x in jax.tree.leaves(state.trainable))
    record = {"impl": "vlmax", "workload": arguments.workload, "batch": workload["batch"], "parameters": parameters}
    return {**record, **times}


def main() -> None:
    """Reads the flags; one run of vlmax, or the comparison."""
    parser = parser_of("training steps of BLIP and BLIP-2 beside transformers' modules", steps=6, warmup=2)
    parser.add_argument("--workload", default="blip-tiny", choices=tuple(WORKLOADS))
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(ours(arguments)))
    elif arguments.peer_python is None:
        parser.error("--peer-python is needed to run the peers; --only runs vlmax alone")
    else:
        shared = ["--workload", arguments.workload]
        compare(arguments.workload, "benchmarks.image_text_train", shared, arguments)


if __name__ == "__main__":
    main()
