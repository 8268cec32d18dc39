"""Several processes, one program: joining them from what the environment says.

On a TPU pod and under Slurm JAX finds everything by itself. Elsewhere three variables say it:
`VLMAX_COORDINATOR` (host:port of process 0), `VLMAX_PROCESSES`, `VLMAX_PROCESS`.
"""

from __future__ import annotations

import os

import jax

from vlmax.errors import InputError

VARIABLES = ("VLMAX_COORDINATOR", "VLMAX_PROCESSES", "VLMAX_PROCESS")
TIMEOUT_SECONDS = 300


def initialize(environment: dict[str, str] | None = None) -> None:
    """Joins the processes of this run; does nothing where there is only one. Call before anything touches a device.

    Raises:
      InputError: the variables are incomplete or contradict each other, or the others cannot be reached in time.
    """
    env = dict(os.environ) if environment is None else environment
    given = {name: env[name] for name in VARIABLES if name in env}
    if given:
        coordinator, count, index = _explicit(given)
        _join(coordinator_address=coordinator, num_processes=count, process_id=index)
    elif _on_pod(env):
        _join()


def _explicit(given: dict[str, str]) -> tuple[str, int, int]:
    missing = [name for name in VARIABLES if name not in given]
    if missing:
        raise InputError(
            f"joining processes: {', '.join(given)} set but not {', '.join(missing)}; set all three or none"
        )
    coordinator = given["VLMAX_COORDINATOR"]
    try:
        count, index = int(given["VLMAX_PROCESSES"]), int(given["VLMAX_PROCESS"])
    except ValueError as error:
        raise InputError(
            f"joining processes: VLMAX_PROCESSES and VLMAX_PROCESS must be whole numbers ({error})"
        ) from error
    if count < 1:
        raise InputError(f"joining processes: VLMAX_PROCESSES is {count}; it must be at least 1")
    if not 0 <= index < count:
        raise InputError(f"joining processes: VLMAX_PROCESS is {index}; it must lie between 0 and {count - 1}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"joining processes: VLMAX_COORDINATOR is {coordinator!r}; it must be host:port of process 0")
    return coordinator, count, index


def _on_pod(env: dict[str, str]) -> bool:
    """More than one TPU worker, several slices, or more than one Slurm task."""
    workers = env.get("TPU_WORKER_HOSTNAMES", "")
    tasks = env.get("SLURM_NTASKS") or "1"
    if not tasks.isdigit():
        raise InputError(f"joining processes: SLURM_NTASKS is {tasks!r}; it must be a whole number, or not be set")
    return "," in workers or "MEGASCALE_COORDINATOR_ADDRESS" in env or int(tasks) > 1


def _join(**arguments) -> None:
    try:
        jax.distributed.initialize(initialization_timeout=TIMEOUT_SECONDS, **arguments)
    except Exception as error:
        raise InputError(
            f"joining processes ({arguments or 'as the environment says'}) failed within {TIMEOUT_SECONDS} s: {error}; "
            "check that every process was started and that process 0 can be reached"
        ) from error
