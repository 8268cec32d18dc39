"""What the environment says about the processes of a run."""

from __future__ import annotations

import pytest

from vlmax.errors import InputError
from vlmax.training import distributed

THREE = {"VLMAX_COORDINATOR": "host:1234", "VLMAX_PROCESSES": "4", "VLMAX_PROCESS": "3"}


@pytest.fixture
def joined(monkeypatch):
    """What JAX was asked to join."""
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda **arguments: calls.append(arguments))
    return calls


def test_a_lone_process_joins_nothing(joined):
    for environment in ({}, {"SLURM_NTASKS": "1"}, {"SLURM_NTASKS": ""}, {"TPU_WORKER_HOSTNAMES": "one"}):
        distributed.initialize(environment)
    assert joined == []


def test_three_variables_name_the_coordinator(joined):
    distributed.initialize(THREE)
    assert len(joined) == 1
    assert joined[0]["coordinator_address"] == "host:1234"
    assert joined[0]["num_processes"] == 4 and joined[0]["process_id"] == 3


@pytest.mark.parametrize(
    "environment",
    [{"TPU_WORKER_HOSTNAMES": "one,two"}, {"MEGASCALE_COORDINATOR_ADDRESS": "one"}, {"SLURM_NTASKS": "2"}],
    ids=lambda environment: next(iter(environment)),
)
def test_on_a_pod_and_under_slurm_jax_finds_the_others(joined, environment):
    distributed.initialize(environment)
    assert len(joined) == 1 and not {"coordinator_address", "num_processes", "process_id"} & joined[0].keys()


def test_the_variables_win_over_slurm(joined):
    distributed.initialize({**THREE, "SLURM_NTASKS": "8"})
    assert joined[0]["num_processes"] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"VLMAX_PROCESS": None}, "set but not VLMAX_PROCESS; set all three or none"),
        ({"VLMAX_COORDINATOR": None, "VLMAX_PROCESSES": None}, "set but not VLMAX_COORDINATOR, VLMAX_PROCESSES"),
        ({"VLMAX_PROCESS": "4"}, "VLMAX_PROCESS is 4; it must lie between 0 and 3"),
        ({"VLMAX_PROCESS": "-1"}, "VLMAX_PROCESS is -1; it must lie between 0 and 3"),
        ({"VLMAX_PROCESSES": "four"}, "must be whole numbers.*four"),
        ({"VLMAX_PROCESSES": "0", "VLMAX_PROCESS": "0"}, "VLMAX_PROCESSES is 0; it must be at least 1"),
        ({"VLMAX_COORDINATOR": "host"}, "VLMAX_COORDINATOR is 'host'; it must be host:port of process 0"),
        ({"VLMAX_COORDINATOR": "host:port"}, "VLMAX_COORDINATOR is 'host:port'; it must be host:port of process 0"),
    ],
)
def test_variables_that_make_no_sense_are_told(joined, changes, message):
    environment = {name: value for name, value in {**THREE, **changes}.items() if value is not None}
    with pytest.raises(InputError, match=message):
        distributed.initialize(environment)
    assert joined == []


def test_processes_that_cannot_be_reached_are_told(monkeypatch):
    def refuse(**arguments):
        raise RuntimeError("deadline exceeded")

    monkeypatch.setattr("jax.distributed.initialize", refuse)
    with pytest.raises(InputError, match=r"host:1234.*failed.*deadline exceeded.*process 0 can be reached"):
        distributed.initialize(THREE)


def test_a_slurm_count_that_is_no_number_is_told(joined):
    with pytest.raises(InputError, match="SLURM_NTASKS is 'many'"):
        distributed.initialize({"SLURM_NTASKS": "many"})
