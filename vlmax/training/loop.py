"""The training loop: one function from an experiment and a directory to scores.

Everything that can be known before the run starts is checked in setup.py. What is here happens while it runs: steps,
metrics read one step late, saves, evaluations, and what to do when something goes wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vlmax.data.digest import digest_hex
from vlmax.data.example import Tokenizes
from vlmax.data.pipeline import Batch, Pipeline, differences
from vlmax.data.quarantine import Quarantine
from vlmax.errors import InputError, RestartRequested, RunFailed
from vlmax.experiment import Experiment
from vlmax.reporting.compiles import CompileLog
from vlmax.reporting.flops import peak_flops, train_flops_per_example
from vlmax.reporting.memory import memory_metrics
from vlmax.reporting.metrics import read_metrics
from vlmax.reporting.pictures import local_rows
from vlmax.reporting.reporter import Reporter
from vlmax.reporting.throughput import Throughput
from vlmax.training import record
from vlmax.training.checkpoints import Checkpointer
from vlmax.training.evaluations import Evaluator
from vlmax.training.setup import Run, device_context, prepare
from vlmax.training.signals import LEAVE, Ballot, Interrupts, Watchdog
from vlmax.training.state import TrainState
from vlmax.training.step import VOTES

STOP = LEAVE + 1  # beyond what processes vote for: every process finds it in the metrics by itself


class RunStopped(RunFailed):
    """The run went wrong in a way that going on would not mend; the last good state is saved."""


def train(experiment: Experiment, workdir: Path, *, accept_changes: bool = False) -> dict[str, float]:
    """Trains from the newest checkpoint in `workdir`, or from the start, and returns the scores of the last evaluation.

    Raises:
      InputError: something in the experiment or the directory must be changed first.
      RestartRequested: the process was told to leave; the state is saved.
      RunStopped: too many steps in a row, or an optimizer's update, were not finite; the last good state is saved.
      SaveFailed: a checkpoint could not be written; the one before it is whole.
    """
    make_directory(workdir)
    changed = record.check_same_run(workdir, experiment, accept_changes)
    with device_context(experiment) as mesh, contextlib.ExitStack() as stack:
        run = prepare(experiment, mesh)
        for evaluation in experiment.evaluations:
            evaluation.check(mesh)  # before the run, not hours into it
        checkpointer = Checkpointer(workdir, experiment.checkpoints)
        stack.callback(checkpointer.close)
        state, data_state = restore_or_init(run, checkpointer)
        start = int(data_state["step"]) if data_state else 0
        tensorboard, resumed = experiment.reports.tensorboard, start if data_state else None
        reporter = stack.enter_context(Reporter(workdir, experiment.steps, resumed, tensorboard=tensorboard))
        for field, (was, now) in changed.items():
            reporter.message(f"changed since the run was started: {field}: {was!r} -> {now!r}")
        write_record(workdir, experiment)
        introduce(run, reporter, workdir, start)
        loop = Loop(run, workdir, checkpointer, reporter, stack)
        state = loop.steps(state, start, data_state)
        return loop.finish(state)


def evaluate(experiment: Experiment, workdir: Path) -> dict[str, float]:
    """Runs the experiment's evaluations on the newest checkpoint in `workdir`; prints and returns the scores.

    Raises:
      InputError: there is no checkpoint, or the experiment has no evaluations.
    """
    if not experiment.evaluations:
        raise InputError(f"experiment {experiment.name!r} has no evaluations; add them to its field `evaluations`")
    if not (workdir / record.FILE).exists():
        raise InputError(f"{workdir} holds no run; train first, or name the run's directory with --workdir")
    record.check_same_run(workdir, experiment, accept_changes=False)
    with device_context(experiment) as mesh, contextlib.ExitStack() as stack:
        run = prepare(experiment, mesh)
        checkpointer = Checkpointer(workdir, experiment.checkpoints)
        stack.callback(checkpointer.close)
        restored = checkpointer.restore(run.abstract_state)
        if restored is None:
            raise InputError(f"{workdir} has no checkpoint yet; train first")
        step, state, _ = restored
        tensorboard = experiment.reports.tensorboard
        reporter = stack.enter_context(Reporter(workdir, experiment.steps, step, tensorboard=tensorboard))
        scores = Evaluator(run, workdir, reporter.message, lambda info: None)(state)
        reporter.write(step, scores)
        reporter.table("scores", ("score", "value"), sorted(scores.items()))
        return scores


def restore_or_init(run: Run, checkpointer: Checkpointer) -> tuple[TrainState, Mapping[str, Any] | None]:
    """The newest checkpoint's state and position in the data, or a fresh state and None."""
    restored = checkpointer.restore(run.abstract_state)
    if restored is None:
        return run.init(), None
    _, state, data = restored
    # A person who starts a stopped run again wants it to go on.
    none = jax.device_put(np.int32(0), state.nonfinite_in_row.sharding)
    return dataclasses.replace(state, nonfinite_in_row=none), data


def make_directory(workdir: Path) -> None:
    """Makes the run's directory where it is not there yet."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workdir: cannot make the directory {workdir} ({error}); name another") from error


def write_record(workdir: Path, experiment: Experiment) -> None:
    """experiment.json, by process 0, after every process has read the old one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("vlmax record")
    if jax.process_index() == 0:
        record.write(workdir, record.record(experiment))


def introduce(run: Run, reporter: Reporter, workdir: Path, start: int) -> None:
    """What is said before step 1: where the run lies, what is sharded, trained and decayed how."""
    experiment = run.experiment
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {jax.process_count()} process(es)"
    reporter.message(f"vlmax: {experiment.name} in {workdir.resolve()} on {devices}, mesh {dict(run.mesh.shape)}")
    if start:
        reporter.message(f"going on after step {start} of {experiment.steps}")
    for table in run.tables():
        reporter.table(table.title, table.columns, table.rows)
    if jax.process_index() == 0:
        (workdir / "parameters.txt").write_text(run.tables_text())


class Loop:
    """The steps of a run, and what happens between them."""

    def __init__(
        self, run: Run, workdir: Path, checkpointer: Checkpointer, reporter: Reporter, stack: contextlib.ExitStack
    ):
        experiment = run.experiment
        self.run, self.experiment, self.workdir = run, experiment, workdir
        self.checkpointer, self.reporter = checkpointer, reporter
        self.interrupts = Interrupts()
        stack.callback(self.interrupts.close)
        self.watchdog = Watchdog(experiment.safety.step_timeout_seconds)
        stack.callback(self.watchdog.close)
        self.compiles = stack.enter_context(CompileLog())
        self.ballot = Ballot(run.mesh, experiment.checkpoints.every_minutes)
        data = experiment.data
        self.quarantine = Quarantine(workdir, data.quarantine_limit, data.quarantine_minimum, jax.process_index())
        peak = peak_flops(jax.devices()[0].device_kind)
        self.throughput = Throughput(
            data.batch_size,
            train_flops_per_example(experiment.system.flops_per_example(), run.passes()),
            None if peak is None else peak * jax.device_count(),
        )
        self.evaluator = Evaluator(run, workdir, reporter.message, self.quarantine.add)
        self.counts: dict[str, int] = {}
        self.position: dict[str, Any] = {}
        self.saved_step: int | None = None
        self.compile_seconds = 0.0

    def steps(self, state: TrainState, start: int, data_state: Mapping[str, Any] | None) -> TrainState:
        """Runs from step `start` to the end of the experiment and saves the last state."""
        last = self.experiment.steps
        if start >= last:
            return state
        self.watchdog.feed(allowance=self.experiment.safety.step_timeout_seconds)
        with Pipeline(self.experiment.data, self.run.batch_sharding, self.experiment.seed, start) as pipeline:
            check_order(data_state, pipeline)
            self.position = pipeline.state()
            batch = self.next_batch(pipeline)
            if start == 0:
                self.show_first_batch(batch)
            step_function = self.compile(state, batch)
            late: Mapping[str, jax.Array] | None = None  # metrics of the step before, not yet read
            for step in range(start + 1, last + 1):
                votes = self.ballot.array(leave=self.interrupts.told_to_leave is not None)
                with jax.transfer_guard("disallow"):
                    state, metrics = step_function(state, {**batch.arrays, VOTES: votes})
                vote = self.account(step - 1, late, start) if late else 0
                late = metrics
                if vote or step == last or self.due(step):
                    vote = max(vote, self.account(step, late, start))
                    late = None
                    self.pause(step, state, vote)
                self.checkpointer.check_errors()
                if step < last:
                    batch = self.next_batch(pipeline)
        return state

    def next_batch(self, pipeline: Pipeline) -> Batch:
        """Waits for input, and writes down what of it was damaged."""
        with self.throughput.waiting():
            batch = next(pipeline)
        self.quarantine.add(batch.info)
        for name, count in batch.info.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        return batch

    def show_first_batch(self, batch: Batch) -> None:
        """Pictures and texts as they reach the model, to a file and to TensorBoard."""
        count = self.experiment.reports.first_batch_images
        for what, found in batch.info.counts.items():
            if found:
                self.reporter.message(f"{found} of the first {len(batch.info.keys)} examples were {what}")
        arrays = {name: local_rows(array, count) for name, array in batch.arrays.items() if name in ("image", "text")}
        preprocess = self.experiment.data.preprocess
        if "image" in arrays and "text" in arrays and isinstance(preprocess, Tokenizes):
            self.reporter.first_batch(arrays["image"], preprocess.detokenize(arrays["text"]))

    def compile(self, state: TrainState, batch: Batch):
        """Compiles the step for exactly these shapes: a later batch of others is an error, not a hidden compilation."""
        began = time.monotonic()
        compiled = self.run.step.lower(state, {**batch.arrays, VOTES: self.ballot.array(leave=False)}).compile()
        seconds = time.monotonic() - began
        self.reporter.message(f"compiled the train step in {seconds:.1f} s; it takes {memory_sentence(compiled)}")
        self.compile_seconds = seconds
        self.compiles.take()
        self.throughput.read()
        self.watchdog.feed()
        return compiled

    def account(self, step: int, metrics: Mapping[str, jax.Array], start: int) -> int:
        """Reads a step's metrics, which waits for it, and writes them; gives what the processes voted for."""
        values = jax.device_get(dict(metrics))
        self.throughput.step()
        self.watchdog.feed()
        vote, digest = int(values.pop(VOTES)), digest_hex(values.pop("digest"))
        if step == 1:
            self.first_loss(float(values["loss"]))
        if not values["nonfinite_in_row"] and not np.isfinite(values["parameter_norm"]):
            raise RunStopped(  # before anything is saved: metrics are read first
                f"stopped after step {step}: the optimizer made an update that is not finite of a gradient that is; "
                f"the weights of the last checkpoint in {self.checkpointer.directory} are good. Lower "
                "optimizer.schedule.peak and the multipliers of the learning rate"
            )
        every = self.experiment.reports.every_steps
        if step % every == 0 or step in (start + 1, self.experiment.steps):
            line: dict[str, Any] = {f"train/{name}": value.item() for name, value in values.items()}
            line |= {"data/digest": digest, "data/damaged": self.quarantine.damaged}
            line |= {f"data/{name}": count for name, count in self.counts.items()}
            if step == start + 1:
                line["compile/seconds"] = self.compile_seconds
            self.reporter.write(step, line | self.throughput.read() | memory_metrics())
            again = self.compiles.take()
            if again.count:
                self.reporter.message(f"step {step}: {again.count} compilations took {again.seconds:.1f} s")
        return STOP if int(values["nonfinite_in_row"]) >= self.experiment.safety.nonfinite_steps else vote

    def first_loss(self, loss: float) -> None:
        """The loss of the fresh weights beside what theory says of it."""
        expected = self.experiment.system.expected_initial_loss(self.experiment.data.batch_size)
        beside = "" if expected is None else f", expected {expected:.4f} for weights that know nothing"
        self.reporter.message(f"loss at step 0: {loss:.4f}{beside}")

    def due(self, step: int) -> bool:
        """Whether the schedules ask for a save or an evaluation after this step."""
        every = (self.experiment.checkpoints.every_steps, self.experiment.evaluate_every)
        return any(n is not None and step % n == 0 for n in every)

    def pause(self, step: int, state: TrainState, vote: int) -> None:
        """Saves and evaluates, as the processes voted or the schedules ask."""
        with self.throughput.paused():
            every = self.experiment.checkpoints.every_steps
            if vote or step == self.experiment.steps or (every is not None and step % every == 0):
                self.save(step, state)
            if vote == STOP:
                self.checkpointer.wait()
                times, place = self.experiment.safety.nonfinite_steps, self.checkpointer.directory / str(step)
                raise RunStopped(
                    f"stopped after step {step}: loss or gradient was not finite {times} times in a row; the weights "
                    f"before that are saved in {place}. "
                    "Lower optimizer.schedule.peak, lengthen the warm-up or set optimizer.clip_norm"
                )
            if vote == LEAVE:
                self.leave(step)
            every = self.experiment.evaluate_every
            if every is not None and step % every == 0 and step < self.experiment.steps:
                self.evaluate(step, state)
            self.watchdog.feed()
            self.compiles.take()

    def save(self, step: int, state: TrainState) -> None:
        """Starts a save of the state after `step`."""
        self.checkpointer.save(step, state, {**self.position, "step": step}, record.record(self.experiment))
        self.saved_step = step
        self.ballot.saved()

    def leave(self, step: int) -> None:
        """Waits for the save and asks to be restarted."""
        self.checkpointer.wait()
        self.quarantine.gather()
        raise RestartRequested(
            f"{self.interrupts.told_to_leave or 'another process was told to leave'}: saved after step {step} of "
            f"{self.experiment.steps} in {self.checkpointer.directory}; the same command goes on from there"
        )

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        """Runs the evaluations and writes their scores; a lone process that is told to leave leaves at once."""
        self.watchdog.close()  # an evaluation may take as long as it needs
        with self.interrupts.raising():
            scores = self.evaluator(state)
        self.reporter.write(step, scores)
        return scores

    def finish(self, state: TrainState) -> dict[str, float]:
        """Waits for the last save, gives the final scores, and says where the run lies."""
        last = self.experiment.steps
        self.watchdog.close()
        self.checkpointer.wait()
        self.quarantine.gather()
        scores = stored_scores(self.workdir, last) if self.saved_step is None else {}
        if self.experiment.evaluations and not scores:
            scores = self.evaluate(last, state)
        elif scores:
            self.reporter.message(f"the run was complete; its scores after step {last}:")
        self.reporter.table("scores", ("score", "value"), sorted(scores.items()))
        self.reporter.message(f"the run lies in {self.workdir.resolve()}")
        return scores


def check_order(saved: Mapping[str, Any] | None, pipeline: Pipeline) -> None:
    """Raises InputError where a resumed run would see other examples than it would have seen."""
    changed = differences(saved, pipeline.state()) if saved else []
    if changed:
        raise InputError(
            "going on from the checkpoint: the order of examples would change, because\n  "
            + "\n  ".join(changed)
            + "\nput the data back as it was, or start anew with another --workdir"
        )


def stored_scores(workdir: Path, step: int) -> dict[str, float]:
    """The evaluation scores that metrics.jsonl has for a step."""
    file = workdir / "metrics.jsonl"
    rows = [row for row in read_metrics(file) if row["step"] == step] if file.exists() else []
    return {name: float(value) for row in rows for name, value in row.items() if name.startswith("eval/")}


def memory_sentence(compiled) -> str:
    """What the compiled step holds on each device."""
    memory = compiled.memory_analysis()
    if memory is None:
        return "memory that this platform does not tell"
    state, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return f"{state / 1e9:.2f} GB of state and batch and {temporary / 1e9:.2f} GB of temporaries per device"
