"""Greedy decoding of vlmax beside transformers' generate() (`peer_generate.py`), run in turn on one machine.

A call makes 64 new tokens after a prompt of 64 tokens and, where the workload takes an image, as many embeddings as the
peer's image has; no mark of the end. The rate is that of decoding alone, as the peer reports it: the last 63 tokens, in
the median time of a call less that of a call for one token. Images are not encoded here: the embeddings are random.

    python -m benchmarks.generate --peer-python ../peer/bin/python --repeats 3
    python -m benchmarks.generate --only --workload llama-160m --batch 8    # one run of vlmax alone, as a JSON line

Beside the rate stand the bytes of parameters that every token reads in a second and, as what the machine has to give,
the bytes a second of a sum over an array of the same size, on all cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

from benchmarks.in_turn import record_of

WORKLOADS = ("llama-160m", "llava-tiny", "blip2-tiny")


def decoder(llm: dict, **changes):
    """The configuration of a workload's language model."""
    from vlmax.models.decoders.llama import LLaMA
    from vlmax.models.decoders.opt import OPT

    sizes = {key: llm[key] for key in ("width", "depth", "heads", "vocab")}
    if llm.get("family") == "opt":
        return OPT(**sizes, mlp=llm["ffn"], context=2048, **changes)
    return LLaMA(**sizes, mlp=llm["ffn"], kv_heads=llm["kv_heads"], context=2048, norm_epsilon=1e-6, **changes)


def image_tokens(workload: dict) -> int:
    """How many places of the prompt the image takes."""
    if workload["kind"] == "llava":
        return (workload["vision"]["image"] // workload["vision"]["patch"]) ** 2
    return workload["qformer"]["queries"] if workload["kind"] == "blip2" else 0


def ours(arguments: argparse.Namespace) -> dict:
    """Times calls for one token and for all, in this process."""
    from vlmax.host_memory import keep_freed_memory

    if arguments.device == "cpu":
        keep_freed_memory()
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vlmax.decoding.generate import generate
    from vlmax.decoding.prompts import Prompt
    from vlmax.decoding.settings import Generation
    from vlmax.models.layers.layer_by_layer import layer_by_layer

    if arguments.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    workload = json.loads((arguments.bench / "workloads.json").read_text())[arguments.workload]
    config, dtype, images = decoder(workload["llm"]), jnp.dtype(arguments.dtype), image_tokens(workload)
    model = config.build(dtype)
    make = jax.jit(lambda key: nn.unbox(model.init(key, np.zeros((1, 1), np.int32))))
    params = jax.tree.map(lambda x: x.astype(dtype), make(jax.random.key(0, impl="rbg")))
    if arguments.device == "cpu":
        params = jax.block_until_ready(layer_by_layer(params))
    rng = np.random.default_rng(0)
    prompt = rng.integers(2, config.vocab - 1, (arguments.batch, arguments.prompt))
    inputs = jnp.asarray(prompt, jnp.int32)
    if images:
        picture = rng.normal(size=(arguments.batch, images, config.embed_width), scale=0.02)
        inputs = jnp.concatenate([jnp.asarray(picture, dtype), model.apply(params, inputs, method="embed")], axis=1)
    prompts = Prompt(inputs, jnp.ones(inputs.shape[:2], jnp.int32))

    def call(new: int) -> None:
        found = generate(model, params, prompts, Generation(max_new_tokens=new)).tokens
        assert [len(text) for text in found] == [new] * arguments.batch

    seconds = {new: timed(lambda new=new: call(new), arguments) for new in (1, arguments.new)}
    first, whole = (statistics.median(seconds[new]) for new in (1, arguments.new))
    tree = dict(params["params"])
    looked_up = [tree.get("positions", {}), {"embedding": tree["vocabulary"]["embedding"]}]
    looked_up = looked_up if "output" in tree["vocabulary"] else looked_up[:1]  # else the logits read it whole
    read = size(params) - size(looked_up)
    step = (whole - first) / (arguments.new - 1)
    return {
        "impl": "vlmax", "workload": arguments.workload, "batch": arguments.batch, "dtype": arguments.dtype,
        "decode_tokens_per_s": arguments.batch / step, "first_token_s": first, "call_s": whole,
        "new_tokens_per_s": arguments.batch * arguments.new / whole,
        "read_bytes_per_s": read / step, "machine_bytes_per_s": machine(read, arguments),
        "prompt": arguments.prompt, "image_tokens": images, "new": arguments.new, "jax": jax.__version__,
        "devices": str(jax.devices()),
    }  # fmt: skip


def size(tree) -> int:
    """Bytes of a tree's arrays."""
    import jax

    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def timed(step, arguments: argparse.Namespace) -> list[float]:
    """Seconds of every timed call."""
    seconds = []
    for i in range(arguments.warmup + arguments.steps):
        start = time.perf_counter()
        step()
        if i >= arguments.warmup:
            seconds.append(time.perf_counter() - start)
    return seconds


def machine(count: int, arguments: argparse.Namespace) -> float:
    """Bytes a second that a sum over an array reads, at best."""
    import jax
    import jax.numpy as jnp

    parts = os.cpu_count() or 1 if arguments.device == "cpu" else 1
    arrays = [jnp.ones(max(count // 4 // parts, 1)) + i for i in range(parts)]
    total = jax.jit(lambda arrays: [jnp.sum(array) for array in arrays])  # each on a core of its own
    seconds = timed(lambda: jax.block_until_ready(total(arrays)), arguments)
    return sum(array.nbytes for array in arrays) / min(seconds)


def flags(arguments: argparse.Namespace, workload: str, batch: int) -> list[str]:
    """The flags that vlmax and the peer share."""
    values = {name: getattr(arguments, name) for name in ("device", "dtype", "steps", "warmup", "prompt", "new")}
    values |= {"workload": workload, "batch": batch}
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def compare(arguments: argparse.Namespace) -> None:
    """Runs vlmax and the peer in turn; prints the median rates and their ratio."""
    repository = Path(__file__).resolve().parents[1]
    own = [sys.executable, "-m", "benchmarks.generate", "--only", "--bench", str(arguments.bench.resolve())]
    peer = [arguments.peer_python, str(arguments.bench / "peer_generate.py"), "--json"]
    peer += ["--passive-wait"] * arguments.passive_wait
    print(f"{'':16}{'batch':>6}{'vlmax':>10}{'peer':>10} tokens/s {'ratio':>7}   GB/s read, of the machine's")
    for workload in arguments.workloads:
        for batch in arguments.batches:
            shared = flags(arguments, workload, batch)
            records: list[tuple[dict, dict]] = []
            for _ in range(arguments.repeats):
                records.append((record_of([*own, *shared], repository), record_of([*peer, *shared], repository)))
            mine, theirs = zip(*records, strict=True)
            rates = [statistics.median(r["decode_tokens_per_s"] for r in side) for side in (mine, theirs)]
            read, most = (statistics.median(r[f"{k}_bytes_per_s"] for r in mine) / 1e9 for k in ("read", "machine"))
            busy = max(r.get("others_share") or 0 for r in theirs)
            print(f"{workload:16}{batch:>6}{rates[0]:>10.1f}{rates[1]:>10.1f}{rates[0] / rates[1]:>17.2f}"
                  f"   {read:.1f} of {most:.1f}; others took up to {busy:.0%} of the cores", flush=True)  # fmt: skip
            if arguments.json:
                with arguments.json.open("a") as file:
                    file.writelines(json.dumps(record) + "\n" for pair in records for record in pair)


def main() -> None:
    """Reads the flags; one run of vlmax, or the comparison."""
    shared = Path(os.environ.get("VLMAX_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    parser = argparse.ArgumentParser(description="vlmax's greedy decoding beside transformers'")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=WORKLOADS, help="which to compare")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="batch sizes to compare")
    parser.add_argument("--workload", choices=WORKLOADS, default=WORKLOADS[0], help="with --only")
    parser.add_argument("--batch", type=int, default=1, help="with --only")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--prompt", type=int, default=64, help="text tokens of the prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to generate")
    parser.add_argument("--steps", type=int, default=5, help="timed calls of a run")
    parser.add_argument("--warmup", type=int, default=2, help="untimed calls before them")
    parser.add_argument("--bench", type=Path, default=shared / "bench", help="where peer_generate.py is")
    parser.add_argument("--only", action="store_true", help="one run of vlmax in this process, as a JSON line")
    parser.add_argument("--peer-python", help="a Python with the peer's requirements installed")
    parser.add_argument("--passive-wait", action="store_true", help="the peer's waiting threads sleep")
    parser.add_argument("--repeats", type=int, default=3, help="how often both run in turn")
    parser.add_argument("--json", type=Path, help="append every record to this file")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(ours(arguments)))
    elif arguments.peer_python is None:
        parser.error("--peer-python is needed to run the peer; --only runs vlmax alone")
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
