"""Trains an experiment, or goes on with it where it stopped.

python -m vlmax.train --config FILE[:variant] [--workdir DIR] [--accept-changes] [--field.of.the.experiment VALUE ...]
"""

from __future__ import annotations

import argparse
import os
import sys

from vlmax.errors import EXIT_FAILED, exit_codes


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this front door alone."""
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on with a run although fields that change it differ from those it was started with",
    )


def main(arguments: list[str] | None = None) -> None:
    """The front door."""
    with exit_codes():
        from vlmax.host_memory import keep_freed_memory, only_cpus

        if only_cpus():
            keep_freed_memory()  # before JAX starts its threads
        from vlmax.training import distributed

        distributed.initialize()
        from vlmax.command_line import parse
        from vlmax.training.loop import train

        command = parse(sys.argv[1:] if arguments is None else arguments, "python -m vlmax.train", add_flags)
        train(command.experiment, command.workdir, accept_changes=command.flags.accept_changes)


if __name__ == "__main__":
    try:
        main()
    except SystemExit as leaving:
        if leaving.code == EXIT_FAILED:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(EXIT_FAILED)  # at once: the threads of a failed save would talk over the message, or never end
        raise
