"""From a command line to an experiment: `--config FILE[:variant]`, `--workdir DIR`, and typed dotted overrides."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import tyro

from vlmax.errors import InputError, nearest
from vlmax.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Command:
    """What a front door that works on a run was asked to do."""

    experiment: Experiment
    workdir: Path
    flags: argparse.Namespace


def load_file(path: Path) -> ModuleType:
    """Imports an experiment file under its own name, so that worker processes can import it too.

    Raises:
      InputError: the file is missing, or its name is that of another module.
    """
    path = path.resolve()
    if not path.is_file():
        there = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise InputError(f"--config: no file {path}; {nearest(path.name, there)}")
    name = path.stem
    loaded = sys.modules.get(name)
    if loaded is not None and Path(getattr(loaded, "__file__", None) or "").resolve() == path:
        return loaded
    found = None if loaded is not None or not name.isidentifier() else importlib.util.find_spec(name)
    taken = loaded is not None or (found is not None and Path(found.origin or "").resolve() != path)
    if taken or not name.isidentifier():
        raise InputError(f"--config: {path.name} cannot be imported as module {name!r}: rename the file")
    sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def split_variant(config: str) -> tuple[Path, str]:
    """`file.py:variant` -> (`file.py`, `variant`); `base` where none is named."""
    file, separator, variant = config.rpartition(":")
    return (Path(file), variant) if separator and not variant.endswith(".py") else (Path(config), "base")


def load_experiment(config: str) -> Experiment:
    """The experiment that `FILE[:variant]` names.

    Raises:
      InputError: the file is missing, has no get_config, or get_config gives something else.
    """
    path, variant = split_variant(config)
    module = load_file(path)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config) or not inspect.signature(get_config).parameters:
        raise InputError(f"--config: {path} has no function get_config(variant: str) -> Experiment; add one")
    experiment = get_config(variant)
    if not isinstance(experiment, Experiment):
        raise InputError(f"--config: get_config of {path} gave a {type(experiment).__name__}, not an Experiment")
    return experiment


def override(experiment: Experiment, arguments: Sequence[str], program: str) -> Experiment:
    """The experiment with `--dotted.field value` overrides; `--help` prints every field with its default in it."""
    return tyro.cli(
        Experiment,
        default=experiment,
        args=list(arguments),
        prog=program,
        description=f"Overrides of experiment {experiment.name!r}; the defaults are this experiment's own.",
        config=(tyro.conf.AvoidSubcommands,),
    )


def parse(arguments: Sequence[str], program: str, add_flags=lambda parser: None) -> Command:
    """Reads a front door's command line.

    Args:
      arguments: the words after the program's name.
      program: how the program is called, for the help text.
      add_flags: adds the front door's own flags to the argparse parser.

    Raises:
      InputError: the experiment cannot be loaded.
      SystemExit: with code 2 for an unknown or malformed override, with 0 after `--help`.
    """
    parser = argparse.ArgumentParser(prog=program, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help="the experiment file and its variant")
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="the run's directory (default: runs/NAME)")
    parser.add_argument("-h", "--help", action="store_true", help="show every field with its default and leave")
    add_flags(parser)
    flags, overrides = parser.parse_known_args(arguments)
    if flags.config is None:
        if flags.help:
            parser.print_help()
            print("\nwith --config, --help shows every field of that experiment")
            sys.exit(0)
        raise InputError(f"{program}: no experiment given; add --config experiments/FILE.py[:variant]")
    experiment = load_experiment(flags.config)
    if flags.help:
        parser.print_help()
        print()
        overrides = ["--help"]
    experiment = override(experiment, overrides, program)
    return Command(experiment, flags.workdir or Path("runs") / experiment.name, flags)
