"""Input pipeline: JPEG to batches, vlmax beside its PyTorch peers in the same run.

Reads the workloads `input-rrc` and `input-clip` of `bench/workloads.json` in the shared folder (`VLMAX_SHARED`) and
the tar shards that `peer_input.py`, beside it, makes. vlmax reads them through `vlmax.data.sources.webdataset`,
transforms with `RandomResizedCrop` and stacks batches in one process per core; the peers run their pipelines likewise.
Both in turn, `--rounds` times; medians are compared. vlmax's batches are uint8 `[batch, height, width, 3]`, normalised
on the device; the peers' are float32, normalised on the host.

    python -m benchmarks.input --peer-python ../peer/bin/python --rounds 3

Images per CPU second divide by the CPU seconds of all processes, which a busy machine disturbs far less than the clock.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

WORKLOADS = ("input-rrc", "input-clip")
PEERS = ("pil-draft-procs", "cv2-procs", "cv2-reduced-procs")  # the fastest of the peer's six on some machine


def passes(workload: dict, shards: list[str], pipe: Connection) -> None:
    """One process: at every message one pass over its shards; answers with images and CPU seconds."""
    import numpy as np

    from vlmax.data.images import RandomResizedCrop
    from vlmax.data.sources.webdataset import WebDataset

    crop, size, rows = workload["crop"], workload["crop"]["size"], workload["batch"]
    transform = RandomResizedCrop(size, tuple(crop["scale"]), tuple(crop["ratio"]), crop["interpolation"])
    reader = WebDataset(tuple(shards), image=("jpg",), texts=()).open()
    rng = np.random.default_rng(os.getpid())
    while pipe.recv():
        start, done = time.process_time(), 0
        for first in range(0, len(reader) - rows + 1, rows):
            batch = np.empty((rows, size, size, 3), np.uint8)
            for row in range(rows):
                image = reader[first + row].image
                assert image is not None
                batch[row] = transform(image, rng)
            done += len(batch)
        pipe.send((done, time.process_time() - start))


def ours(workload: dict, data: Path, workers: int, steps: int) -> dict[str, float]:
    """Images per second and per CPU second of vlmax: a warm-up pass, then the median of `steps` passes."""
    shards = sorted(str(p) for p in data.glob("*.tar"))
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for i in range(workers):
        here, there = context.Pipe()
        processes.append(context.Process(target=passes, args=(workload, shards[i::workers], there), daemon=True))
        processes[-1].start()
        pipes.append(here)
    rates, images, cpu = [], 0, 0.0
    for step in range(steps + 1):
        start = time.perf_counter()
        for pipe in pipes:
            pipe.send(True)
        answers = [pipe.recv() for pipe in pipes]
        if step:
            rates.append(sum(done for done, _ in answers) / (time.perf_counter() - start))
            images, cpu = images + sum(a[0] for a in answers), cpu + sum(a[1] for a in answers)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(False)
        process.join()
    return {"images_per_s_per_core": statistics.median(rates) / workers, "images_per_cpu_s": images / cpu}


def peer(arguments: argparse.Namespace, name: str, pipeline: str) -> dict[str, float]:
    """The same figures of one of the peer's pipelines."""
    flags = {"workload": name, "pipeline": pipeline, "workers": arguments.workers, "data": arguments.data,
             "steps": arguments.steps}  # fmt: skip
    command = [arguments.peer_python, str(arguments.bench / "peer_input.py"), "--json"]
    for flag, value in flags.items():
        command += [f"--{flag}", str(value)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def compare(arguments: argparse.Namespace, name: str, workload: dict) -> None:
    """Runs vlmax and the peers in turn and prints a table."""
    records: dict[str, list[dict[str, float]]] = {"vlmax": []} | {p: [] for p in arguments.peers}
    for _ in range(arguments.rounds):
        for pipeline in arguments.peers:  # first: its first run makes the shards
            records[pipeline].append(peer(arguments, name, pipeline))
        records["vlmax"].append(ours(workload, arguments.data, arguments.workers, arguments.steps))
    keys = ("images_per_s_per_core", "images_per_cpu_s")
    medians = {n: [statistics.median(r[k] for r in runs) for k in keys] for n, runs in records.items()}
    print(f"\n{name}: {workload['source']['width']}x{workload['source']['height']} JPEG -> {workload['crop']['size']}, "
          f"{arguments.workers} processes, medians of {arguments.rounds} rounds")  # fmt: skip
    print(f"{'':22}{'images/s/core':>15}{'images/CPU s':>15}")
    for pipeline, (rate, per_cpu) in medians.items():
        print(f"{pipeline:22}{rate:15.1f}{per_cpu:15.1f}")
    best = [max(medians[p][i] for p in arguments.peers) for i in (0, 1)]
    print(f"{'vlmax / best peer':22}{medians['vlmax'][0] / best[0]:15.2f}{medians['vlmax'][1] / best[1]:15.2f}")


def main() -> None:
    """Reads the flags and compares on each workload."""
    shared = Path(os.environ.get("VLMAX_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    parser = argparse.ArgumentParser(description="vlmax's input pipeline beside its peers")
    parser.add_argument("--peer-python", required=True, help="a Python with the peer's requirements installed")
    parser.add_argument("--workload", choices=WORKLOADS, action="append", help="default: both")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), help="pipelines of peer_input.py")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, one a core")
    parser.add_argument("--steps", type=int, default=3, help="timed passes over the images")
    parser.add_argument("--rounds", type=int, default=3, help="how often both run in turn")
    parser.add_argument("--bench", type=Path, default=shared / "bench", help="where peer_input.py is")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "peer_input_data")
    arguments = parser.parse_args()
    workloads = json.loads((arguments.bench / "workloads.json").read_text())
    for name in arguments.workload or WORKLOADS:
        compare(arguments, name, workloads[name])


if __name__ == "__main__":
    main()
