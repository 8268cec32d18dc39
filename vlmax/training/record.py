"""experiment.json: what a run was started with, and whether a later start is still the same run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import vlmax
from vlmax.described import refreshed, resolved
from vlmax.errors import InputError
from vlmax.experiment import Experiment

FILE = "experiment.json"
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

# Fields that may differ when a run is resumed: they change where and how fast it runs or what it writes, no weights.
HARMLESS = ("mesh", "rules", "checkpoints", "reports", "safety", "evaluations", "evaluation_image", "evaluate_every")
HARMLESS_DATA = ("data.workers", "data.threads", "data.prefetch", "data.quarantine_limit", "data.quarantine_minimum")


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """`{"optimizer.schedule.peak": 0.001, ...}`."""
    if isinstance(tree, dict) and tree:
        return {k: v for name, sub in tree.items() for k, v in flat(sub, f"{path}.{name}" if path else name).items()}
    if isinstance(tree, list) and tree:
        return {k: v for i, sub in enumerate(tree) for k, v in flat(sub, f"{path}.{i}").items()}
    return {path: tree}


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Field path -> (old, new) of every field that differs between two resolved trees and changes the run."""
    was, now = flat(old), flat(new)
    missing = "(absent)"
    return {
        path: (was.get(path, missing), now.get(path, missing))
        for path in sorted({*was, *now})
        if was.get(path, missing) != now.get(path, missing)
        and path.split(".")[0] not in HARMLESS
        and path not in HARMLESS_DATA
    }


def commit() -> str | None:
    """The commit that vlmax runs from, with `+changes` where the tree differs from it; None outside a checkout."""
    folder = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode or not (folder / ".git").exists():
        return None
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def versions() -> dict[str, str]:
    """Python and the packages whose version can change a run."""
    found = {"vlmax": vlmax.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def record(experiment: Experiment) -> dict[str, Any]:
    """What experiment.json holds."""
    return {
        "experiment": resolved(experiment),
        "versions": versions(),
        "commit": commit(),
        "command": sys.argv,
    }


def write(workdir: Path, content: dict[str, Any]) -> None:
    """Writes experiment.json, whole or not at all."""
    part = workdir / (FILE + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(part, workdir / FILE)


def check_same_run(workdir: Path, experiment: Experiment, accept_changes: bool) -> dict[str, tuple[Any, Any]]:
    """Compares the experiment with the one that the run directory was started with; gives what differs.

    Raises:
      InputError: the directory belongs to another experiment, or a field that changes the run differs and
        `accept_changes` is off.
    """
    file = workdir / FILE
    if not file.exists():
        return {}
    try:
        old = json.loads(file.read_text())["experiment"]
        name = old["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"cannot read {file} ({error}); restore it, or name another directory with --workdir"
        ) from error
    if name != experiment.name:
        raise InputError(
            f"{workdir} belongs to experiment {name!r}, not {experiment.name!r}; name another directory with --workdir"
        )
    changed = differences(refreshed(old), resolved(experiment))
    if changed and not accept_changes:
        lines = "\n".join(f"  {path}: {was!r} -> {now!r}" for path, (was, now) in changed.items())
        raise InputError(
            f"{workdir} was started with other values, and these change the run:\n{lines}\n"
            "start with the old values, name another directory with --workdir, "
            "or go on with the new values with --accept-changes"
        )
    return changed
