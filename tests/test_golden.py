"""Every experiment's resolved tree is what its snapshot says, so that no recipe changes unseen."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from tests.update_golden import EXPERIMENTS, GOLDEN, golden, snapshot, variants
from vlmax.command_line import load_experiment, load_file
from vlmax.errors import InputError

ALL = list(variants())
IDS = [f"{file.stem}:{variant}" for file, variant in ALL]


@pytest.mark.parametrize(("file", "variant"), ALL, ids=IDS)
def test_the_tree_is_the_snapshot(file: Path, variant: str):
    path, now = golden(file, variant), snapshot(file, variant)
    advice = "look at the difference; if it is meant: python -m tests.update_golden"
    assert path.exists(), f"{path.name} is missing; {advice}"
    assert now == path.read_text(), f"{file.name}:{variant} is not {path.name}; {advice}"


def test_no_snapshot_is_left_over():
    assert {path.name for path in GOLDEN.iterdir()} == {golden(*pair).name for pair in ALL}


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_no_snapshot_names_a_place_of_one_machine(path: Path):
    text = path.read_text()
    for place in (str(EXPERIMENTS.parent), str(Path.home()) + "/", '"/'):
        assert place not in text, f"{path.name} holds {place}"


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.glob("*.py")), ids=lambda file: file.stem)
def test_base_is_what_no_variant_means_and_unknown_ones_are_told(file: Path):
    known = load_file(file).VARIANTS
    assert known[0] == "base" and len(set(known)) == len(known)
    assert load_experiment(str(file)) == load_experiment(f"{file}:base")
    with pytest.raises(InputError, match=f"no variant '{known[-1]}x'.*{known[-1]}"):
        load_experiment(f"{file}:{known[-1]}x")


@pytest.mark.parametrize(("file", "variant"), ALL, ids=IDS)
def test_the_optimizer_fits_the_system(file: Path, variant: str):
    experiment = load_experiment(f"{file}:{variant}")
    system = experiment.system
    example = {name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for name, x in system.inputs().items()}
    boxed, _ = jax.eval_shape(system.init, jax.random.key(0), example)
    built = experiment.optimizer.build(boxed, experiment.steps, system.locked())
    assert not all(built.frozen.values())
    if "image" in system.inputs():
        assert experiment.evaluation_image.size == system.inputs()["image"].shape[0]
