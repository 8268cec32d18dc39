"""Steps that are timed, and vlmax and its peers run in turn: what the benchmarks of training share."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PEERS = ("eager", "compiled")


def record_of(command: list[str], directory: Path) -> dict:
    """Runs a command and reads the JSON line that it ends with."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=directory)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def initial_state(system, optimizer, batch: dict):
    """The state of a system before step 1, and the optimizer that was built for it."""
    import jax
    import jax.numpy as jnp

    from vlmax.sharding.rules import unboxed
    from vlmax.training.groups import split
    from vlmax.training.state import TrainState

    boxed, carried = system.init(jax.random.key(0), {name: value[:1] for name, value in batch.items()})
    built = optimizer.build(boxed, 1000, locked=system.locked())
    trainable, frozen = split(unboxed(boxed), built.frozen)
    moments, zero = built.transformation.init(trainable), jnp.zeros((), jnp.int32)
    return TrainState(zero, trainable, frozen, moments, unboxed(carried), {}, zero + 0, zero + 0), built


def timed(step: Callable[[], float], arguments: argparse.Namespace) -> dict:
    """Median seconds and CPU seconds of a step that gives its loss, and the first and the last loss timed."""
    seconds, cpu, losses = [], [], []
    for i in range(arguments.warmup + arguments.steps):
        start, cpu_start = time.perf_counter(), time.process_time()
        loss = step()
        if i >= arguments.warmup:
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - cpu_start)
            losses.append(loss)
    middle = {"step_s": statistics.median(seconds), "cpu_s": statistics.median(cpu)}
    return {**middle, "losses": [losses[0], losses[-1]]}


def compare(title: str, module: str, shared: Sequence[str], arguments: argparse.Namespace) -> None:
    """Runs `module` and its peer, `<module>_torch`, in turn; prints medians and vlmax against each peer."""
    shared = [*shared, "--steps", str(arguments.steps), "--warmup", str(arguments.warmup)]
    peer = [arguments.peer_python, "-m", f"{module}_torch", *shared]
    commands = {"vlmax": [sys.executable, "-m", module, "--only", *shared]}
    commands |= {"eager": peer, "compiled": [*peer, "--compile"]}
    records: dict[str, list[dict]] = {name: [] for name in ("vlmax", *arguments.peers)}
    for _ in range(arguments.repeats):
        for name, found in records.items():
            found.append(record_of(commands[name], REPOSITORY))
            print(f"  {name:12}{found[-1]['step_s']:9.3f} s", file=sys.stderr, flush=True)
    middle = {n: [statistics.median(r[k] for r in rs) for k in ("step_s", "cpu_s")] for n, rs in records.items()}
    print(f"{title}, batch {records['vlmax'][0]['batch']}, float32, {arguments.repeats} runs of each in turn, "
          f"{arguments.steps} steps a run")  # fmt: skip
    print(f"{'':12}{'trained':>14}{'s/step':>10}{'CPU s':>10}   these, divided by vlmax's")
    for name, (step, cpu) in middle.items():
        ratios = f"{step / middle['vlmax'][0]:10.2f}{cpu / middle['vlmax'][1]:10.2f}"
        print(f"{name:12}{records[name][0]['parameters']:14,}{step:10.3f}{cpu:10.3f}{ratios}")


def parser_of(description: str, steps: int, warmup: int) -> argparse.ArgumentParser:
    """The flags of a comparison."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=steps, help="timed steps of a run")
    parser.add_argument("--warmup", type=int, default=warmup, help="untimed steps before them")
    parser.add_argument("--only", action="store_true", help="one run of vlmax in this process, as a JSON line")
    parser.add_argument("--peer-python", help="a Python with the peer's requirements installed")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--repeats", type=int, default=3, help="how often all run in turn")
    return parser
