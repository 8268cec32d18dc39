"""Signals, votes and the watchdog."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.shared import REPOSITORY
from vlmax.errors import RestartRequested
from vlmax.sharding.mesh import Mesh
from vlmax.training import signals
from vlmax.training.signals import LEAVE, SAVE, Ballot, Interrupts


@pytest.fixture
def interrupts():
    interrupts = Interrupts()
    yield interrupts
    interrupts.close()


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns."""
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    return now


def test_a_signal_is_noted_and_the_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    interrupts = Interrupts()
    assert interrupts.told_to_leave is None
    os.kill(os.getpid(), signal.SIGTERM)
    assert interrupts.told_to_leave == "SIGTERM"
    interrupts.close()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_interrupt_from_the_keyboard_does_not_wait(interrupts):
    os.kill(os.getpid(), signal.SIGINT)
    assert interrupts.told_to_leave == "SIGINT"
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_work_that_may_be_thrown_away_is_left_at_once(interrupts):
    with pytest.raises(RestartRequested, match="SIGTERM received"), interrupts.raising():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the signal did not raise")
    with pytest.raises(RestartRequested), interrupts.raising():
        pytest.fail("a signal from before was forgotten")


def test_outside_of_such_work_a_signal_does_not_raise(interrupts):
    with interrupts.raising():
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    assert interrupts.told_to_leave == "SIGTERM"


def test_the_votes_go_to_every_device(clock):
    mesh = Mesh(data=2, fsdp=2, tensor=2).build()
    ballot = Ballot(mesh, minutes=2.0)
    np.testing.assert_array_equal(ballot.array(leave=False), np.zeros(8, np.int32))
    clock[0] += 119
    assert int(np.max(ballot.array(leave=False))) == 0
    clock[0] += 2
    np.testing.assert_array_equal(ballot.array(leave=False), np.full(8, SAVE))
    np.testing.assert_array_equal(ballot.array(leave=True), np.full(8, LEAVE))
    ballot.saved()
    assert int(np.max(ballot.array(leave=False))) == 0
    assert len({shard.device for shard in ballot.array(leave=False).addressable_shards}) == 8


def test_no_clock_votes_only_for_leaving(clock):
    ballot = Ballot(Mesh().build(), minutes=None)
    clock[0] += 1e9
    assert int(np.max(ballot.array(leave=False))) == 0
    assert int(np.max(ballot.array(leave=True))) == LEAVE > SAVE


def test_the_watchdog_dumps_all_stacks_and_ends_the_process():
    program = (
        "import time\n"
        "from vlmax.training.signals import Watchdog\n"
        "dog = Watchdog(0.2)\n"
        "dog.feed()\n"
        "dog.close()\n"
        "time.sleep(0.5)\n"
        "print('closed in time', flush=True)\n"
        "dog.feed(allowance=0.3)\n"
        "def a_step_that_hangs():\n"
        "    time.sleep(60)\n"
        "a_step_that_hangs()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=50, check=False
    )
    assert ended.returncode == 1
    assert "closed in time" in ended.stdout
    assert "a_step_that_hangs" in ended.stderr
