"""Commands and code in README.md, docs/ and the experiments' docstrings: each is read as its program reads it."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from tests.shared import REPOSITORY
from vlmax import bootstrap, prepare
from vlmax.command_line import load_experiment, parse
from vlmax.data.pipeline import host_batches
from vlmax.data.sources.open import open_source
from vlmax.sharding.rules import unboxed
from vlmax.systems.clip import CLIP
from vlmax.train import add_flags

PAGES = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "benchmarks/README.md"])
FILES = sorted((REPOSITORY / "experiments").glob("*.py"))
FORMS = {"vlmax.train", "vlmax.evaluate", "vlmax.prepare"}


def commands(text: str) -> list[str]:
    """The indented lines of a page, or of a docstring, that run a program; continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = re.findall(r"^ {4}(?! )(.+)$", joined, re.MULTILINE)
    return [line for line in lines if re.search(r"python -m |^launch/", line)]


def all_commands() -> list[tuple[str, str]]:
    pages = [(p, p.read_text()) for p in PAGES]
    files = [(p, ast.get_docstring(ast.parse(p.read_text())) or "") for p in FILES]
    return [(p.name, c.split(" && ")[-1]) for p, text in pages + files for c in commands(text)]


def programs(name: str) -> list[tuple[str, str]]:
    """The commands, by where they stand, of one program."""
    return [(page, c) for page, c in all_commands() if f"python -m {name}" in c]


def words(command: str, program: str) -> list[str]:
    """What follows the program's name."""
    all_words = shlex.split(command)
    return all_words[all_words.index(program) + 1 :]


def test_there_are_commands():
    assert len(programs("vlmax.train")) >= 8 and len(programs("vlmax.prepare")) >= 6
    assert len(programs("benchmarks.")) >= 4


@pytest.mark.parametrize(("page", "command"), programs("vlmax.train") + programs("vlmax.evaluate"))
def test_a_command_that_runs_an_experiment_is_understood(page, command, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    name = "vlmax.train" if "vlmax.train" in command else "vlmax.evaluate"
    arguments = words(command, name)
    if "--help" in arguments:
        with pytest.raises(SystemExit) as left:
            parse(arguments, name, add_flags)
        assert left.value.code == 0
    else:
        assert parse(arguments, name, add_flags).experiment.steps > 0


@pytest.mark.parametrize(("page", "command"), programs("vlmax.prepare"))
def test_a_command_that_prepares_is_understood(page, command, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    arguments = tyro.cli(prepare.Arguments, args=words(command, "vlmax.prepare"))
    source = open_source(arguments.source, **arguments.reading.of(arguments.source))
    assert dataclasses.is_dataclass(source)
    assert arguments.check or arguments.out is not None


@pytest.mark.parametrize(("page", "command"), programs("vlmax.bootstrap"))
def test_a_command_that_bootstraps_is_understood(page, command):
    arguments = tyro.cli(bootstrap.Command, args=words(command, "vlmax.bootstrap"))
    assert dataclasses.is_dataclass(open_source(arguments.source, **arguments.reading.of(arguments.source)))


@pytest.mark.parametrize(("page", "command"), [c for c in all_commands() if "python -m benchmarks" in c[1]])
def test_a_benchmark_has_the_flags_that_its_command_gives(page, command):
    name = re.search(r"python -m (benchmarks\.\w+)", command)[1]
    asked = [sys.executable, "-m", name, "--help"]
    told = subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for flag in (w for w in words(command, name) if w.startswith("--")):
        assert re.search(rf"{flag}\b", told), f"{page}: {name} has no {flag}"


def test_every_other_program_exists():
    for page, command in all_commands():
        found = re.search(r"python -m ([\w.]+)", command)
        if found and found[1] not in FORMS and not found[1].startswith("benchmarks"):
            assert importlib.util.find_spec(found[1]) is not None, f"{page}: {command}"
        elif not found:
            assert (REPOSITORY / command.split()[0]).is_file(), f"{page}: {command}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.name in ("README.md", "own_data.md", "own_system.md")])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def code(page: str) -> str:
    """The one block of Python of a page."""
    (found,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / page).read_text(), re.DOTALL)
    return found


def test_what_the_guide_to_data_sets_makes_can_be_made():
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/data.md").read_text(), re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        exec(block, {})


def test_shapes_are_prepared_as_the_guide_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (command,) = [c for _, c in programs("vlmax.prepare") if "--source shapes " in c]
    prepare.main(words(command, "vlmax.prepare"))
    assert (tmp_path / "data/shapes/dataset_info.json").exists()


def test_the_experiment_on_own_data_reads_its_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLMAX_CACHE", str(tmp_path / "cache"))
    rows = []
    for i in range(80):
        cv2.imwrite(f"{i}.jpg", np.full((70, 90, 3), i * 3, np.uint8))
        rows.append({"file": f"{i}.jpg", "caption": f"a gray picture, number {i}", "label": f"kind {i % 4}"})
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("my_pairs.py").write_text(code("own_data.md"))
    experiment = load_experiment("my_pairs.py")
    batch = host_batches(experiment.data, range(64), seed=0)[0].arrays
    for name, wanted in experiment.system.inputs().items():
        assert batch[name].shape == (64, *wanted.shape) and batch[name].dtype == wanted.dtype
    experiment.system.check_tokenizer(experiment.data.preprocess.opened)


def test_the_encoder_of_the_guide_trains_within_clip(tmp_path):
    (tmp_path / "mixed_of_the_guide.py").write_text(code("own_system.md"))
    spec = importlib.util.spec_from_file_location("mixed_of_the_guide", tmp_path / "mixed_of_the_guide.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tiny = load_experiment(str(REPOSITORY / "experiments/clip_vit_b32.py:tiny")).system
    system = CLIP(module.Mixed(image=16, width=16), tiny.text, embed=tiny.embed, dtype="float32")
    batch = {"image": jnp.zeros((2, 16, 16, 3), jnp.uint8), "text": jnp.ones((2, tiny.text.context), jnp.int32)}
    boxed, carried = jax.eval_shape(system.init, jax.random.key(0), batch)
    assert carried == {} and system.flops_per_example()["image encoder"] == 2.0 * 4 * 16 * (192 + 16)
    loss, _ = jax.eval_shape(system.loss, unboxed(boxed), carried, batch, jax.random.key(0))
    assert loss.shape == ()
