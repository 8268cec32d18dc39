"""Checkpoints: state, position in the data and experiment together, written in the background, committed atomically.

A checkpoint is `checkpoints/<step>/{state, data, experiment}`, written by Orbax into a temporary directory that is
renamed when it is whole. What is found half written is removed at the next start.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from vlmax.errors import InputError, RunFailed
from vlmax.experiment import Checkpoints
from vlmax.training.state import TrainState, state_bytes

FORMAT = 1  # of the checkpoint as a whole; raised when an older vlmax could no longer read it
FOLDER = "checkpoints"
ITEMS = ("state", "data", "experiment")
MAKE_ROOM = "make room, lower checkpoints.keep_last, or move the run with --workdir"


class SaveFailed(RunFailed):
    """A checkpoint could not be written; the message names the cause and the newest one that is whole."""


class Checkpointer:
    """Saves and restores the checkpoints of one run directory."""

    def __init__(self, workdir: Path, options: Checkpoints, log: Callable[[str], None] = print):
        self.directory = (workdir / FOLDER).resolve()
        self.log = log
        managers = ocp.checkpoint_managers
        kept: list[Any] = [managers.LatestN(options.keep_last)]
        if options.keep_every is not None:
            kept.append(managers.EveryNSteps(options.keep_every))
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        logging.getLogger("absl").addFilter(not_raised_here)
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self.directory, options=self._options, item_names=ITEMS)

    def steps(self) -> list[int]:
        """Steps that have a committed checkpoint, ascending; read from the disk, for a save may be under way."""
        return sorted(ocp.path.step.checkpoint_steps(self.directory))

    def save(self, step: int, state: TrainState, data: Mapping[str, Any], experiment: Mapping[str, Any]) -> None:
        """Starts a save; returns when the state is copied off the devices, so that the next step may reuse them.

        Raises:
          SaveFailed: the disk cannot hold it, or the save before this one failed.
        """
        if step in self._manager.all_steps():
            return
        self.check_room(state)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave({"format": FORMAT, **data}),
                    experiment=ocp.args.JsonSave(dict(experiment)),
                ),
                force=True,
            )
        except Exception as error:
            raise self._failed(error) from error

    def check_room(self, state: TrainState) -> None:
        """Raises SaveFailed where the disk has no room for one more checkpoint."""
        needed, free = state_bytes(state), shutil.disk_usage(self.directory).free
        if free < needed:
            raise SaveFailed(
                f"saving to {self.directory}: a checkpoint takes {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; "
                f"{MAKE_ROOM} ({self._newest()})"
            )

    def check_errors(self) -> None:
        """Raises SaveFailed where a save in the background has failed since the last call."""
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Waits until every save is committed; raises SaveFailed where one failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error
        self.check_errors()

    def close(self) -> None:
        """Waits, then lets go of the directory."""
        try:
            self._manager.close()
        except Exception as error:
            raise self._failed(error) from error

    def restore(self, abstract: TrainState) -> tuple[int, TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, as `(step, state, data)`; None where there is none.

        A damaged one is said, moved aside to `damaged-<step>`, and the one before it is taken.

        Args:
          abstract: shapes, dtypes and shardings to restore into; any mesh and any number of processes will do.

        Raises:
          InputError: every checkpoint is damaged, or one was written by a newer vlmax or for other shapes.
        """
        steps = self.steps()
        for step in reversed(steps):
            self._check_format(step)
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()),
                )
                return step, restored["state"], dict(restored["data"])
            except Exception as error:
                self._check_shapes(step, abstract)
                self.log(f"checkpoint {step} is damaged ({first_line(error)}); taking the one before it")
                self._set_aside(step)
        if steps:
            raise InputError(
                f"every checkpoint in {self.directory} is damaged: {steps}; restore one, or start anew with another "
                "--workdir"
            )
        return None

    def _check_format(self, step: int) -> None:
        """A newer format is an error of its own, not damage."""
        try:
            found = json.loads((self.directory / str(step) / "data" / "metadata").read_text()).get("format", FORMAT)
        except (OSError, ValueError):
            return  # unreadable: the restore says so
        if found > FORMAT:
            raise InputError(
                f"checkpoint {self.directory / str(step)} has format {found}, and this vlmax reads up to {FORMAT}; "
                "use the vlmax that wrote it (experiment.json names its version) or a newer one"
            )

    def _check_shapes(self, step: int, abstract: TrainState) -> None:
        """A readable checkpoint of other shapes is an error of its own, not damage."""
        try:
            tree = self._manager.item_metadata(step)["state"]
            stored = {path_name(p): tuple(x.shape) for p, x in jax.tree_util.tree_flatten_with_path(tree)[0]}
        except Exception:
            return  # unreadable metadata: damage
        wanted = {path_name(p): tuple(x.shape) for p, x in jax.tree_util.tree_flatten_with_path(abstract)[0]}
        wrong = [
            f"  {name}: stored {stored.get(name, 'nothing')}, wanted {wanted.get(name, 'nothing')}"
            for name in sorted({*stored, *wanted})
            if stored.get(name) != wanted.get(name)
        ]
        if wrong:
            more = f"\n  and {len(wrong) - 10} more" if len(wrong) > 10 else ""
            raise InputError(
                f"checkpoint {self.directory / str(step)} is of another model or optimizer:\n"
                + "\n".join(wrong[:10])
                + more
                + "\nrestore the experiment's fields, or name another directory with --workdir"
            )

    def _set_aside(self, step: int) -> None:
        self._manager.close()
        if jax.process_index() == 0:
            target = self.directory / f"damaged-{step}"
            if target.exists():
                shutil.rmtree(target)
            (self.directory / str(step)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"vlmax damaged checkpoint {step}")
        self._manager = self._open()

    def _newest(self) -> str:
        steps = self.steps()
        return f"the newest whole checkpoint is {steps[-1]}" if steps else "there is no whole checkpoint"

    def _failed(self, error: Exception) -> SaveFailed:
        no_space = "No space left" in str(error) or getattr(error, "errno", None) == errno.ENOSPC
        advice = f"; {MAKE_ROOM}" if no_space else ""
        return SaveFailed(f"saving to {self.directory} failed: {first_line(error)}{advice} ({self._newest()})")


def first_line(error: BaseException) -> str:
    """Kind and first line of an error's message; of a long one the beginning and the end (the reason)."""
    text = str(error).strip().splitlines()
    if not text:
        return type(error).__name__
    line = text[0] if len(text[0]) <= 300 else f"{text[0][:100]} ... {text[0][-200:]}"
    return f"{type(error).__name__}: {line}"


def not_raised_here(record: logging.LogRecord) -> bool:
    """False for the tracebacks that Orbax logs, once a thread, of an error that comes back as `SaveFailed`."""
    return record.levelno < logging.ERROR or Path(ocp.__file__).parent not in Path(record.pathname).parents


def path_name(path: tuple[Any, ...]) -> str:
    """`trainable/image/...` of a pytree path, whichever kind of node it goes through."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
