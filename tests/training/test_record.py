"""experiment.json, and whether a later start is still the same run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import tiny
from vlmax.errors import InputError
from vlmax.experiment import Checkpoints, Reports, Safety
from vlmax.sharding.mesh import Mesh
from vlmax.training import record
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Constant, Cosine


def base(**changes):
    """The tiny experiment."""
    return tiny.experiment(**changes)


@pytest.fixture
def started(tmp_path):
    record.write(tmp_path, record.record(base()))
    return tmp_path


def test_the_record_names_types_versions_and_the_commit(started):
    content = json.loads((started / record.FILE).read_text())
    assert content["experiment"]["type"] == "vlmax.experiment.Experiment"
    assert content["experiment"]["optimizer"]["algorithm"]["type"] == "vlmax.training.optimizers.AdamW"
    assert content["experiment"]["system"]["image"]["width"] == 16
    assert {"vlmax", "python", "jax", "flax", "optax", "numpy"} <= content["versions"].keys()
    assert "commit" in content and "command" in content
    assert [file.name for file in started.iterdir()] == [record.FILE]


def test_an_experiment_holds_only_what_json_can():
    with pytest.raises(TypeError, match="tuples, numbers and strings, not object"):
        record.resolved({"a": object()})
    assert record.resolved((1, 2.5, "x", None, True, Path("a/b"))) == [1, 2.5, "x", None, True, "a/b"]


def test_flat_gives_a_path_to_every_field():
    tree = {"a": {"b": [1, {"c": 2}], "d": []}, "e": {}}
    assert record.flat(tree) == {"a.b.0": 1, "a.b.1.c": 2, "a.d": [], "e": {}}


def test_the_same_experiment_goes_on(started):
    assert record.check_same_run(started, base(), accept_changes=False) == {}


def test_a_run_of_an_older_vlmax_goes_on(started):
    """It knew fewer fields, and some types under other names."""
    content = json.loads((started / record.FILE).read_text())
    del content["experiment"]["init"], content["experiment"]["system"]["image"]["final_norm"]
    content["experiment"]["system"]["text"]["type"] = "vlmax.systems.clip.TextEncoder"
    record.write(started, content)
    assert record.check_same_run(started, base(), accept_changes=False) == {}
    other = base(system=tiny.clip(image=tiny.vit(final_norm=False)))
    with pytest.raises(InputError, match=r"system\.image\.final_norm: True -> False"):
        record.check_same_run(started, other, accept_changes=False)


def test_a_fresh_directory_is_fine(tmp_path):
    assert record.check_same_run(tmp_path, base(), accept_changes=False) == {}


@pytest.mark.parametrize(
    "experiment",
    [
        base(mesh=Mesh(data=2, fsdp=4)),
        base(checkpoints=Checkpoints(every_steps=3)),
        base(reports=Reports(every_steps=1)),
        base(safety=Safety(nonfinite_steps=1)),
        base(evaluate_every=5),
        tiny.with_data(base(), workers=2, prefetch=5),
        tiny.with_data(base(), threads=4),
        tiny.with_data(base(), quarantine_limit=0.5, quarantine_minimum=5),
    ],
    ids=["mesh", "checkpoints", "reports", "safety", "evaluations", "workers", "threads", "quarantine"],
)
def test_fields_that_do_not_change_what_is_learned_may_change(started, experiment):
    assert record.check_same_run(started, experiment, accept_changes=False) == {}


CHANGED = {
    "steps": base(steps=20),
    "seed": base(seed=1),
    "microbatches": base(microbatches=2),
    "ema_decay": base(ema_decay=0.9),
    "data.batch_size": tiny.with_data(base(), batch_size=64),
    "system.image.width": base(system=tiny.clip(image=tiny.vit(width=32))),
    "optimizer.schedule.peak": base(optimizer=Optimizer(AdamW(weight_decay=0.1), Constant(peak=0.5))),
    "optimizer.schedule.type": base(optimizer=Optimizer(AdamW(weight_decay=0.1), Cosine(peak=1e-2))),
    "optimizer.clip_norm": base(optimizer=Optimizer(AdamW(weight_decay=0.1), Constant(peak=1e-2), clip_norm=1.0)),
}


@pytest.mark.parametrize("field", CHANGED)
def test_a_field_that_changes_the_run_is_named(started, field):
    with pytest.raises(InputError) as error:
        record.check_same_run(started, CHANGED[field], accept_changes=False)
    assert f"  {field}: " in str(error.value) and "--accept-changes" in str(error.value)
    accepted = record.check_same_run(started, CHANGED[field], accept_changes=True)
    assert field in accepted and accepted[field][0] != accepted[field][1]


def test_a_directory_of_another_experiment_is_told_even_when_changes_are_accepted(started):
    for accept in (False, True):
        with pytest.raises(InputError, match="belongs to experiment 'tiny', not 'other'; name another directory"):
            record.check_same_run(started, base(name="other"), accept_changes=accept)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"experiment": {}}', '{"experiment": null}'])
def test_a_record_that_cannot_be_read_is_told(tmp_path, content):
    (tmp_path / record.FILE).write_text(content)
    with pytest.raises(InputError, match=r"cannot read .*experiment.json"):
        record.check_same_run(tmp_path, base(), accept_changes=False)
