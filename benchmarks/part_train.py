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
from pathlib import Path

from benchmarks.in_turn import compare, parser_of, timed

PARTS = {"decoder": "llava-tiny", "encoder": "clip-vit-b16"}


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

    def advance() -> float:
        nonlocal params, state
        params, state, value = jax.block_until_ready(compiled(params, state, batch))
        return float(value)

    times = timed(advance, arguments)
    parameters = sum(x.size for x in jax.tree.leaves(params))
    return {"impl": "vlmax", "part": arguments.part, "batch": rows, "parameters": parameters, **times}


def main() -> None:
    """Reads the flags; one run of vlmax, or the comparison."""
    shared = Path(os.environ.get("VLMAX_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    parser = parser_of("a training step of one part beside transformers", steps=8, warmup=3)
    parser.add_argument("--part", default="decoder", choices=tuple(PARTS))
    parser.add_argument("--bench", type=Path, default=shared / "bench", help="where workloads.json is")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(ours(arguments)))
    elif arguments.peer_python is None:
        parser.error("--peer-python is needed to run the peers; --only runs vlmax alone")
    else:
        flags = ["--part", arguments.part, "--bench", str(arguments.bench.resolve())]
        compare(f"{arguments.part} of {PARTS[arguments.part]}", "benchmarks.part_train", flags, arguments)


if __name__ == "__main__":
    main()
