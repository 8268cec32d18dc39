import os
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.data.stand_ins import Failing, Numbers, Plain
from vlmax.data.digest import digest_hex, digest_numpy
from vlmax.data.pipeline import (
    Data,
    EvaluationPipeline,
    Pipeline,
    Weighted,
    differences,
    host_batches,
    local_rows,
)
from vlmax.errors import InputError

BATCH = 16
MIXED = Data(
    (Weighted(Numbers(100), 0.75), Weighted(Numbers(7, name="few", damaged=(3,)), 0.25)),
    Plain(),
    batch_size=BATCH,
)


def sharding(shape=(8,), names=("data",), spec=("data",)):
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return NamedSharding(Mesh(devices, names), PartitionSpec(spec))


def whole(data, step, seed=0):
    return host_batches(data, range(data.batch_size), seed)[step]


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]), err_msg=name)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shares_of_processes_make_up_the_same_global_batch(processes):
    placed = sharding((2, 4), ("data", "fsdp"), ("data", "fsdp"))
    devices = list(placed.mesh.devices.flat)
    shares = [devices[p::processes] for p in range(processes)]  # not neighbours on purpose
    rows = [local_rows(placed, BATCH, share) for share in shares]
    assert sorted(r for share in rows for r in share) == list(range(BATCH))
    expected = whole(MIXED, 11)
    parts = [host_batches(MIXED, share, 0, start_step=11)[0] for share in rows]
    for name, array in expected.arrays.items():
        joined = np.empty_like(array)
        for share, part in zip(rows, parts, strict=True):
            joined[list(share)] = part.arrays[name]
        np.testing.assert_array_equal(joined, array)
    read = [key for part in parts for key in part.info.keys]
    assert Counter(read) == Counter(expected.info.keys)  # no row read by two processes
    assert sum(part.info.counts["even"] for part in parts) == expected.info.counts["even"]


def test_replicas_read_the_same_rows():
    placed = sharding((2, 4), ("data", "tensor"), ("data",))
    assert local_rows(placed, BATCH, list(placed.mesh.devices[0])) == tuple(range(8))
    assert local_rows(placed, BATCH, [placed.mesh.devices[1, 3]]) == tuple(range(8, 16))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 5), st.integers(0, 2**31))
def test_seeking_equals_walking(start, ahead, seed):
    walked = host_batches(MIXED, range(BATCH), seed, start)[ahead]
    sought = host_batches(MIXED, range(BATCH), seed, start + ahead)[0]
    same(walked.arrays, sought.arrays)
    assert walked.info == sought.info
    assert walked.info.step == start + ahead


def test_global_arrays_on_several_meshes():
    for placed in (sharding((1,)), sharding(), sharding((2, 2, 2), ("data", "fsdp", "tensor"), ("data", "fsdp"))):
        with Pipeline(MIXED, placed, seed=3, start_step=5) as pipeline, jax.transfer_guard("disallow"):
            batch = next(pipeline)
        assert batch.arrays["noise"].sharding.is_equivalent_to(placed, 2)
        expected = whole(MIXED, 5, seed=3)
        same(batch.arrays, expected.arrays)
        assert batch.info == expected.info
        assert pipeline.state()["step"] == 6


def test_workers_do_not_change_the_order():
    seen = []
    for workers, threads in ((0, 1), (0, 3), (1, 1), (2, 1)):
        data = Data(MIXED.sources, MIXED.preprocess, BATCH, workers=workers, threads=threads, prefetch=1)
        with Pipeline(data, sharding(), seed=1, start_step=1_000_000) as pipeline:
            batches = [next(pipeline) for _ in range(5)]
        seen.append([digest_hex(digest_numpy(np.asarray(b.arrays["key_hash"]))) for b in batches])
        seen.append([np.asarray(b.arrays["noise"]).tobytes() for b in batches])
        assert [b.info.step for b in batches] == list(range(1_000_000, 1_000_005))
    assert seen[0::2] == [seen[0]] * 4
    assert seen[1::2] == [seen[1]] * 4


def test_mixture_and_repetition_count_every_example():
    infos = [whole(MIXED, step).info for step in range(100)]  # 1200 and 400 examples
    per_source = Counter()
    for info in infos:
        per_source.update(info.per_source)
    assert per_source == {"numbers": 1200, "few": 400}
    keys = Counter(key for info in infos for key in info.keys)
    assert {keys["numbers", str(i)] for i in range(100)} == {12}  # twelve whole epochs
    assert ("few", "3") not in keys
    tried = sum(d.key == "3" for info in infos for d in info.damaged)
    assert 400 // 7 <= tried <= 2 * 400 // 7  # once an epoch, and sometimes as a substitute


def test_one_percent_damaged():
    damaged, undecodable = tuple(range(0, 1000, 200)), tuple(range(100, 1000, 200))
    data = Data((Weighted(Numbers(1000, damaged=damaged, undecodable=undecodable)),), Plain(), batch_size=50)
    infos = [whole(data, step).info for step in range(20)]  # one epoch
    found = {(d.key, d.reason) for info in infos for d in info.damaged}
    assert found == {(str(i), "cannot be read") for i in damaged} | {(str(i), "cannot be decoded") for i in undecodable}
    assert all(len(info.keys) == 50 for info in infos)
    again = [whole(data, step).info for step in range(20)]
    assert infos == again
    assert not {k for info in infos for _, k in info.keys} & {str(i) for i in (*damaged, *undecodable)}


def test_a_source_that_is_all_damaged_is_said_so():
    data = Data((Weighted(Numbers(5, damaged=tuple(range(5)))),), Plain(), batch_size=2)
    with pytest.raises(InputError, match=r"'numbers': 32 records in a row are damaged.*cannot be read"):
        whole(data, 0)


def test_a_source_smaller_than_the_batch_repeats():
    data = Data((Weighted(Numbers(3)),), Plain(), batch_size=16)
    counts = Counter(key for _, key in whole(data, 0).info.keys)
    assert sorted(counts.values()) == [5, 5, 6]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_in_the_preprocess_names_the_record(workers):
    data = Data((Weighted(Numbers(20)),), Failing(at=7), batch_size=8, workers=workers)
    with pytest.raises(KeyError, match="a bug in the preprocess") as error, Pipeline(data, sharding()) as pipeline:
        for _ in range(3):
            next(pipeline)
    frames = []
    trace = error.value.__traceback__
    while trace:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert "__call__" in frames or "__call__" in str(error.getrepr())
    assert any("record '7'" in note for note in error.value.__notes__)


def test_a_worker_that_dies_is_told():
    data = Data((Weighted(Numbers(20)),), Failing(at=7, how="die"), batch_size=8, workers=1)
    died = pytest.raises(RuntimeError, match=r"worker process of the input pipeline died.*-9")
    with died, Pipeline(data, sharding()) as pipeline:
        for _ in range(3):
            next(pipeline)


def test_changes_of_the_order_are_named():
    with Pipeline(MIXED, sharding(), seed=1) as first:
        saved = first.state()
    assert differences(saved, saved) == []
    other = Data((Weighted(Numbers(101)),), Plain(), batch_size=8)
    with Pipeline(other, sharding(), seed=2, start_step=3) as second:
        told = differences(saved, second.state())
    assert [line.split(":")[0] for line in told] == ["seed", "data.batch_size", "data.sources (name, records, weight)"]


def test_wrong_configurations_are_explained():
    source = (Weighted(Numbers()),)
    for wrong, field in (
        ({"batch_size": 0}, "data.batch_size"),
        ({"workers": -1}, "data.workers"),
        ({"prefetch": 0}, "data.prefetch"),
        ({"threads": 0}, "data.threads"),
        ({"quarantine_limit": 2.0}, "data.quarantine_limit"),
        ({"sources": ()}, "data.sources"),
        ({"sources": source * 2}, "share a name"),
    ):
        with pytest.raises(InputError, match=field):
            Data(**{"sources": source, "preprocess": Plain(), **wrong})
    with pytest.raises(InputError, match=r"batch_size 20 does not divide over 8 parts .*data=8.*that does is 16"):
        Pipeline(Data(source, Plain(), batch_size=20), sharding())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_sees_every_example_once(workers):
    source = Numbers(37, damaged=(5,), undecodable=(36,))
    with EvaluationPipeline(source, Plain(), 16, sharding(), workers=workers) as pipeline:
        assert pipeline.examples == 37
        assert len(pipeline) == 3
        batches = list(pipeline)
    assert len(batches) == 3
    valid = np.concatenate([np.asarray(b.arrays["valid"]) for b in batches])
    index = np.concatenate([np.asarray(b.arrays["index"]) for b in batches])
    assert index[valid].tolist() == [i for i in range(37) if i not in (5, 36)]
    assert not np.concatenate([np.asarray(b.arrays["noise"]) for b in batches])[~valid].any()
    damaged = [(d.key, d.reason) for b in batches for d in b.info.damaged]
    assert damaged == [("5", "cannot be read"), ("36", "cannot be decoded")]
    assert sum(key is not None for b in batches for key in b.info.keys) == 35
    assert sum(b.info.per_source.get("numbers", 0) for b in batches) == 35


def test_an_evaluation_divides_over_processes():
    placed = sharding((8,))
    from vlmax.data.batches import EvaluationBatches

    rows = [local_rows(placed, 16, placed.mesh.devices.flat[p * 4 : p * 4 + 4]) for p in range(2)]
    parts = [EvaluationBatches("n", Numbers(20).open(), Plain(), 16, share, 1) for share in rows]
    assert [len(p) for p in parts] == [2, 2]
    keys = [key for step in range(2) for part in parts for key in part[step].info.keys]
    assert [k for k in keys if k] == [("n", str(i)) for i in range(20)]


SCRIPT = """
import multiprocessing, signal, sys, time
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tests.data.stand_ins import Numbers, Plain
from vlmax.data.pipeline import Data, Pipeline, Weighted

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: print("terminated", flush=True))
    signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
    sharding = NamedSharding(Mesh(jax.devices()[:1], ("data",)), PartitionSpec("data"))
    pipeline = Pipeline(Data((Weighted(Numbers()),), Plain(), batch_size=8, workers=2), sharding)
    while len(multiprocessing.active_children()) < 2:
        time.sleep(0.001)
    print("workers", *[p.pid for p in multiprocessing.active_children()], flush=True)
    for line in sys.stdin:
        for _ in range(20):
            next(pipeline)
        print("step", pipeline.step, flush=True)
    pipeline.close()
    print("closed", flush=True)
"""


@pytest.fixture
def program(tmp_path):
    """A running pipeline with two workers, in a process group of its own."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    workers = [int(pid) for pid in process.stdout.readline().split()[1:]]
    assert len(workers) == 2, process.stderr.read()
    yield process, workers
    process.kill()
    process.wait()


def say(process, text="go\n"):
    process.stdin.write(text)
    process.stdin.flush()


def test_signals_to_the_whole_group_leave_the_workers_working(program):
    """They come while the workers are still starting, which is when they could die of them."""
    process, workers = program
    for number, said in ((2, "interrupted"), (15, "terminated")):
        os.killpg(process.pid, number)
        assert process.stdout.readline().strip() == said
    say(process)
    assert process.stdout.readline().strip() == "step 20", process.stderr.read()
    started = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert out.strip() == "closed"
    assert time.monotonic() - started < 10
    assert process.returncode == 0
    assert "leaked" not in err
    assert "Traceback" not in err
    assert not any(alive(pid) for pid in workers)


def test_workers_die_with_a_killed_parent(program):
    process, workers = program
    assert all(alive(pid) for pid in workers)
    os.kill(process.pid, 9)
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_seeking_costs_the_same_anywhere_and_memory_does_not_grow_with_the_source():
    def opened(records, step):
        tracemalloc.start()
        batches = host_batches(Data((Weighted(Numbers(records)),), Plain(), BATCH), range(BATCH), 0, step)
        batches[0]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        times = []
        for _ in range(30):
            start = time.process_time()
            host_batches(Data((Weighted(Numbers(records)),), Plain(), BATCH), range(BATCH), 0, step)[0]
            times.append(time.process_time() - start)
        return peak, min(times)

    opened(1000, 0)  # first uses of everything
    (small, _), (large, near), (_, far) = opened(1000, 0), opened(10_000_000, 0), opened(10_000_000, 1_000_000)
    assert large < small + 20_000
    assert far < 1.2 * near + 1e-3
