import io

import pytest

from vlmax.reporting.console import Console


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def figures(step):
    return {"train/loss": 1 / step, "train/examples_per_second": 1234.5, "train/input_wait_share": 0.0123}


def test_plain_lines_come_at_intervals_and_at_the_end():
    clock, file = Clock(), io.StringIO()
    console = Console(100, file=file, interval_seconds=10, clock=clock)
    for step in range(1, 101):
        clock.now += 1.0 if step > 1 else 60.0  # the first step compiles
        console.write(step, figures(step))
    console.close()
    lines = file.getvalue().splitlines()
    assert lines[0] == "step 1/100  loss 1  1,234.5 examples/s  input wait 1.2%  ETA -:--:--"
    assert lines[1] == "step 11/100  loss 0.09091  1,234.5 examples/s  input wait 1.2%  ETA 0:01:29"
    assert lines[-1].startswith("step 100/100  loss 0.01 ") and lines[-1].endswith("ETA 0:00:00")
    assert len(lines) == 11


def test_scores_and_messages_are_told_at_once_and_whole():
    file = io.StringIO()
    console = Console(10, file=file)
    console.write(3, {"eval/zero_shot/top1": 0.95, "eval/zero_shot/examples": 512.0})
    console.message("[not markup] " + "long " * 60)
    lines = file.getvalue().splitlines()
    assert lines[0] == "step 3  zero_shot/top1 0.95  zero_shot/examples 512"
    assert lines[1] == "[not markup] " + "long " * 60


def test_a_terminal_gets_a_live_line():
    file = io.StringIO()
    console = Console(4, file=file, live=True)
    for step in (1, 2, 3, 4):
        console.write(step, figures(step))
    console.message("a message")
    console.close()
    console.close()
    text = file.getvalue()
    assert "\x1b[" in text and "4/4" in text and "loss 0.25" in text and "a message" in text


def test_tables():
    file = io.StringIO()
    console = Console(1, file=file)
    console.table("parts", ("part", "parameters"), [("image", 86_000_000), ("[text]", 37)])
    text = file.getvalue()
    assert "parts" in text and "86,000,000" in text and "[text]" in text
    with pytest.raises(ValueError, match="2 columns"):
        console.table("parts", ("a", "b"), [("only one",)])
