"""From a command line to an experiment, and what is told when it is wrong."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from tests import tiny
from tests.shared import REPOSITORY
from vlmax import evaluate, train
from vlmax.command_line import load_experiment, load_file, parse, split_variant
from vlmax.errors import EXIT_FAILED, EXIT_INPUT, EXIT_RESTART, InputError, RestartRequested, exit_codes
from vlmax.models.encoders.resnet import ResNet
from vlmax.training import loop
from vlmax.training.optimizers import AdamW
from vlmax.training.schedules import Cosine

QUICKSTART = REPOSITORY / "experiments" / "clip_shapes.py"


@pytest.fixture
def experiment_file(tmp_path):
    """Writes an experiment file with its own name; forgets its module afterwards."""
    written, path_before = [], list(sys.path)

    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(content))
        written.append(path.stem)
        return path

    yield write
    sys.path[:] = path_before
    for name in written:
        sys.modules.pop(name, None)


def command(*arguments: str):
    return parse(["--config", str(QUICKSTART), *arguments], "python -m vlmax.train")


# Overrides.


def test_overrides_are_the_fields_own_paths_and_keep_their_types():
    found = command(
        "--optimizer.schedule.peak", "2e-3", "--steps", "7", "--data.batch-size", "64", "--system.text.pool", "last",
        "--checkpoints.every_minutes", "None", "--optimizer.frozen", "image/.*", "text/.*", "--ema-decay", "0.5",
        "--data.sources.0.source.count", "5", "--mesh.fsdp", "2", "--system.dtype=bfloat16",
    ).experiment  # fmt: skip
    assert found.optimizer.schedule == Cosine(peak=2e-3, warmup_steps=50)
    assert found.steps == 7 and found.data.batch_size == 64 and found.ema_decay == 0.5 and found.mesh.fsdp == 2
    assert isinstance(found.system.image, ResNet) and found.system.text.pool == "last"
    assert isinstance(found.optimizer.algorithm, AdamW) and found.optimizer.frozen == ("image/.*", "text/.*")
    assert found.checkpoints.every_minutes is None and found.checkpoints.every_steps == 100
    assert found.data.sources[0].source.count == 5 and found.system.dtype == "bfloat16"
    unchanged = command().experiment
    assert unchanged == load_experiment(str(QUICKSTART)) and hash(unchanged) == hash(load_experiment(str(QUICKSTART)))


def test_the_directory_is_named_after_the_experiment(tmp_path):
    assert command().workdir == Path("runs/clip_shapes")
    assert command("--name", "other").workdir == Path("runs/other")
    assert command("--workdir", str(tmp_path)).workdir == tmp_path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--optimizer.schedule.peek", "1e-3"], ["--optimizer.schedule.peek", "--optimizer.schedule.peak"]),
        (["--step", "5"], ["--step", "--steps"]),
        (["--steps", "many"], ["--steps", "many"]),
        (["--steps"], ["--steps"]),
        (["--system.text.pool", "max"], ["--system.text.pool", "'highest', 'last', 'mean'"]),
        (["5"], ["5"]),
        (["--data.batch_size", "30", "--microbatches", "7"], ["data.batch_size 30", "the nearest batch size", "28"]),
        (["--system.text.heads", "5"], ["width 128 does not divide over 5 heads"]),
        (["--data.batch_size", "0"], ["data.batch_size is 0"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("-") or value == ["5"] else "",
)
def test_a_wrong_override_leaves_with_2_and_names_the_right_one(arguments, told, capsys):
    with pytest.raises(SystemExit) as left, exit_codes():
        command(*arguments)
    assert left.value.code == EXIT_INPUT
    output = capsys.readouterr()
    shown = " ".join((output.out + output.err).replace("│", " ").split())
    for word in told:
        assert word in shown
    assert "Traceback" not in shown


def test_help_shows_every_field_with_its_default_in_this_experiment(capsys):
    with pytest.raises(SystemExit) as left:
        command("--help")
    assert left.value.code == 0
    shown = capsys.readouterr().out
    for field in ("--workdir", "--steps", "--optimizer.schedule.peak", "--system.text.width", "--data.batch-size"):
        assert field in shown
    assert "default: 1300" in shown and "default: 0.002" in shown and "Optimizer steps of the whole run" in shown


def test_help_without_an_experiment_says_how_to_see_the_fields(capsys):
    with pytest.raises(SystemExit) as left:
        parse(["--help"], "python -m vlmax.train")
    assert left.value.code == 0 and "--config" in capsys.readouterr().out


def test_no_experiment_is_an_error():
    with pytest.raises(InputError, match="no experiment given; add --config"):
        parse(["--steps", "5"], "python -m vlmax.train")


# Files and variants.


def test_a_variant_comes_after_a_colon():
    assert split_variant("a/b.py:tiny") == (Path("a/b.py"), "tiny")
    assert split_variant("a/b.py") == (Path("a/b.py"), "base")
    assert split_variant("C:/a/b.py") == (Path("C:/a/b.py"), "base")


def test_a_missing_file_names_the_near_ones():
    with pytest.raises(InputError, match=r"no file .*clip_shape.py; did you mean 'clip_shapes.py'"):
        load_experiment(str(QUICKSTART.with_name("clip_shape.py")))
    with pytest.raises(InputError, match=r"no file .*nowhere/x.py; none is known"):
        load_experiment("nowhere/x.py")


def test_an_unknown_variant_is_told():
    with pytest.raises(InputError, match=r"no variant 'tinny'.*FILE:VARIANT"):
        load_experiment(f"{QUICKSTART}:tinny")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1", "has no function get_config"),
        ("get_config = 5", "has no function get_config"),
        ("def get_config():\n    return 1", "has no function get_config"),
        ("def get_config(variant='base'):\n    return {'steps': 1}", "gave a dict, not an Experiment"),
    ],
)
def test_a_file_without_an_experiment_is_told(experiment_file, content, message):
    path = experiment_file("vlmax_test_wrong.py", content)
    with pytest.raises(InputError, match=message) as error:
        load_experiment(str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["json.py", "two words.py", "numpy.py"])
def test_a_file_that_hides_another_module_is_told(tmp_path, name):
    path = tmp_path / name
    path.write_text("def get_config(variant='base'):\n    return None")
    before = sys.modules.get(path.stem)
    with pytest.raises(InputError, match="rename the file"):
        load_experiment(str(path))
    assert sys.modules.get(path.stem) is before


def test_a_file_is_found_again_and_its_neighbours_can_be_loaded(experiment_file, monkeypatch):
    first = experiment_file("vlmax_test_first.py", "import vlmax_test_second\nvalue = vlmax_test_second.value")
    second = experiment_file("vlmax_test_second.py", "value = 3")
    assert load_file(first).value == 3 and load_file(first) is load_file(first)
    assert load_file(second) is sys.modules["vlmax_test_second"]
    third = experiment_file("vlmax_test_third.py", "value = 4")
    assert load_file(third).value == 4  # though its folder is on the path by now
    monkeypatch.chdir(third.parent)
    assert load_file(Path("vlmax_test_third.py")).value == 4


def test_a_bug_in_the_file_keeps_its_traceback_and_leaves_nothing_behind(experiment_file):
    path = experiment_file("vlmax_test_bug.py", "1 / 0")
    with pytest.raises(ZeroDivisionError):
        load_file(path)
    assert "vlmax_test_bug" not in sys.modules


# The front doors themselves, up to what is checked before compiling.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--mesh.data", "3"], "does not multiply to the number of devices, 8; the nearest that does: mesh.data=8"),
        (["--data.batch-size", "100"], "the nearest that does is 96"),
        (["--evaluations.1.batch-size", "30"], "evaluation 'retrieval': its batch_size 30 does not divide"),
        (["--evaluations.1.limit", "0"], "evaluation 'retrieval': limit is 0"),
        (["--evaluations.0.templates", "a picture"], "each template needs one {}"),
        (["--rules", "embed", "nowhere"], "names the mesh axis 'nowhere'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_training_leaves_with_2_and_says_what_to_change(tmp_path, arguments, told, capsys):
    with pytest.raises(SystemExit) as left:
        train.main(["--config", str(QUICKSTART), "--workdir", str(tmp_path / "run"), *arguments])
    shown = capsys.readouterr().err
    assert left.value.code == EXIT_INPUT
    assert shown.startswith("error: ") and told in shown and "Traceback" not in shown


def test_a_directory_that_cannot_be_made_is_told(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as left:
        train.main(["--config", str(QUICKSTART), "--workdir", str(tmp_path / "file" / "run")])
    assert left.value.code == EXIT_INPUT and "--workdir: cannot make the directory" in capsys.readouterr().err


def test_evaluating_nothing_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        evaluate.main(["--config", str(QUICKSTART), "--workdir", str(tmp_path)])
    assert left.value.code == EXIT_INPUT and "holds no run; train first" in capsys.readouterr().err
    with pytest.raises(InputError, match="'tiny' has no evaluations; add them to its field `evaluations`"):
        loop.evaluate(tiny.experiment(), tmp_path)


# Exit codes.


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (InputError("steps is 0"), EXIT_INPUT, "error: steps is 0"),
        (RestartRequested("saved"), EXIT_RESTART, "restart: saved"),
    ],
)
def test_errors_become_exit_codes_without_a_traceback(error, code, word, capsys):
    with pytest.raises(SystemExit) as left, exit_codes():
        raise error
    assert left.value.code == code
    shown = capsys.readouterr().err
    assert shown == word + "\n"


def test_other_errors_keep_their_traceback():
    with pytest.raises(KeyError), exit_codes():
        raise KeyError("a bug")
    assert (EXIT_INPUT, EXIT_RESTART, EXIT_FAILED) == (2, 75, 1)
