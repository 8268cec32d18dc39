"""Runs an experiment's evaluations on the newest checkpoint of a run and prints the scores.

python -m vlmax.evaluate --config FILE[:variant] [--workdir DIR] [--field.of.the.experiment VALUE ...]
"""

from __future__ import annotations

import sys

from vlmax.errors import exit_codes


def main(arguments: list[str] | None = None) -> None:
    """The front door."""
    with exit_codes():
        from vlmax.host_memory import keep_freed_memory, only_cpus

        if only_cpus():
            keep_freed_memory()  # before JAX starts its threads
        from vlmax.training import distributed

        distributed.initialize()
        from vlmax.command_line import parse
        from vlmax.training.loop import evaluate

        command = parse(sys.argv[1:] if arguments is None else arguments, "python -m vlmax.evaluate")
        evaluate(command.experiment, command.workdir)


if __name__ == "__main__":
    main()
