"""The schema: what it refuses, and how it helps."""

from __future__ import annotations

import dataclasses

import pytest

from tests import tiny
from tests.data.stand_ins import Numbers
from vlmax.errors import InputError
from vlmax.evaluation.retrieval import Retrieval
from vlmax.experiment import Checkpoints, Reports, Safety, nearest_multiple, unknown_variant


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("steps", {"steps": 0}),
        ("microbatches", {"microbatches": -1}),
        ("evaluate_every", {"evaluate_every": 0}),
        ("checkpoints.every_steps", {"checkpoints": Checkpoints(every_steps=0)}),
        ("checkpoints.every_minutes", {"checkpoints": Checkpoints(every_minutes=-1.0)}),
        ("checkpoints.keep_last", {"checkpoints": Checkpoints(keep_last=0)}),
        ("checkpoints.keep_every", {"checkpoints": Checkpoints(keep_every=0)}),
        ("reports.every_steps", {"reports": Reports(every_steps=0)}),
        ("reports.first_batch_images", {"reports": Reports(first_batch_images=-1)}),
        ("safety.nonfinite_steps", {"safety": Safety(nonfinite_steps=0)}),
        ("safety.step_timeout_seconds", {"safety": Safety(step_timeout_seconds=0.0)}),
        ("ema_decay", {"ema_decay": 1.0}),
        ("ema_decay", {"ema_decay": 0.0}),
        ("seed", {"seed": 2**32}),
        ("seed", {"seed": -1}),
        ("frozen_dtype", {"frozen_dtype": "float16"}),
    ],
    ids=lambda value: value if isinstance(value, str) else str(next(iter(value.values())))[:30],
)
def test_a_number_that_makes_no_sense_is_told_by_its_field(field, changes):
    with pytest.raises(InputError, match=rf"experiment 'tiny': {field} is .*; it must"):
        tiny.experiment(**changes)


def test_none_switches_a_schedule_off():
    tiny.experiment(checkpoints=Checkpoints(every_steps=None, every_minutes=None), evaluate_every=None, ema_decay=None)


def test_two_evaluations_of_one_name_are_told():
    retrieval = Retrieval(Numbers(), captions=1)
    with pytest.raises(InputError, match=r"two of its evaluations share a name, \['retrieval', 'retrieval'\]"):
        tiny.experiment(evaluations=(retrieval, retrieval))
    tiny.experiment(evaluations=(retrieval, dataclasses.replace(retrieval, name="other")))


def test_a_batch_that_does_not_divide_into_microbatches_names_what_does():
    with pytest.raises(
        InputError, match=r"data.batch_size 32 .* 5 microbatches; the nearest .* is 30, .*microbatches to 4"
    ):
        tiny.experiment(microbatches=5)


@pytest.mark.parametrize(("value", "factor", "nearest"), [(30, 8, 32), (27, 8, 24), (3, 8, 8), (16, 8, 16)])
def test_the_nearest_multiple_is_at_least_the_factor(value, factor, nearest):
    assert nearest_multiple(value, factor) == nearest


def test_an_unknown_variant_names_the_near_ones():
    assert "no variant 'b23'; did you mean" in str(unknown_variant("b23", ("base", "b32", "b16")))
    assert "known: base, tiny" in str(unknown_variant("x", ("base", "tiny")))
    assert isinstance(unknown_variant("x", ()), InputError)


def test_configurations_compare_and_hash_by_value():
    assert tiny.experiment() == tiny.experiment() and hash(tiny.experiment()) == hash(tiny.experiment())
    assert tiny.experiment() != tiny.experiment(seed=1)
