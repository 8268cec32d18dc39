import io

import jax
import numpy as np
import pytest
from PIL import Image

from tests.reporting.events import read_events
from vlmax.reporting.metrics import read_metrics
from vlmax.reporting.reporter import Reporter


def scalars(directory):
    return [
        (event.step, value.tag, value.simple_value)
        for event in read_events(directory)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def test_figures_reach_all_three(tmp_path, capsys):
    with Reporter(tmp_path, total_steps=2) as reporter:
        reporter.write(1, {"train/loss": 0.5, "data/digest": "abcd"})
        reporter.write(2, {"train/loss": 0.25})
        reporter.write(2, {"eval/zero_shot/top1": 1.0})
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 2]
    assert scalars(tmp_path) == [(1, "train/loss", 0.5), (2, "train/loss", 0.25), (2, "eval/zero_shot/top1", 1.0)]
    said = capsys.readouterr().out
    assert "step 1/2  loss 0.5" in said and "step 2  zero_shot/top1 1" in said


def test_a_resumed_run_goes_on_with_one_history(tmp_path):
    for resume_step, steps in ((None, (1, 2, 3)), (1, (2, 3, 4))):
        with Reporter(tmp_path, 4, resume_step) as reporter:
            for step in steps:
                reporter.write(step, {"train/loss": 1.0 * step})
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    starts = [event.step for event in read_events(tmp_path) if event.session_log.status == event.session_log.START]
    assert starts[-1] == 2, "TensorBoard hides events of the first attempt from step 2 on"


def test_the_first_batch_is_a_picture_and_texts(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    with Reporter(tmp_path, 4) as reporter:
        reporter.first_batch(images, ["a red circle", "two\n\nblue squares", "<b>x</b>", ""])
    shown = np.asarray(Image.open(tmp_path / "first_batch.png"))
    np.testing.assert_array_equal(shown[12:220:13, 12:220:13], images[0])
    values = {value.tag: value for event in read_events(tmp_path) for value in event.summary.value}
    stored = values["first_batch/images"].image.encoded_image_string
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored)).convert("RGB")), shown)
    text = next(value for tag, value in values.items() if tag.startswith("first_batch/texts"))
    assert text.tensor.string_val[0] == b"    0: a red circle\n    1: two blue squares\n    2: <b>x</b>\n    3: "


def test_other_processes_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Reporter(tmp_path, 4) as reporter:
        reporter.write(1, {"train/loss": 1.0})
        reporter.message("hello")
        reporter.table("t", ("a",), [(1,)])
        reporter.first_batch(np.zeros((1, 8, 8, 3), np.uint8), [""])
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_a_reporter_is_closed_after_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), Reporter(tmp_path, 4) as reporter:
        reporter.write(1, {"train/loss": 1.0})
        raise RuntimeError("stop")
    assert scalars(tmp_path) == [(1, "train/loss", 1.0)]


def test_without_tensorboard(tmp_path):
    with Reporter(tmp_path, 4, tensorboard=False) as reporter:
        reporter.write(1, {"train/loss": 1.0})
        reporter.first_batch(np.zeros((1, 8, 8, 3), np.uint8), ["a word"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first_batch.png", "metrics.jsonl"]
