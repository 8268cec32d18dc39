import pytest

from vlmax.reporting.throughput import Throughput


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_figures_of_an_interval():
    clock = Clock()
    throughput = Throughput(batch_size=32, flops_per_example=1e9, peak_flops=1e12, clock=clock)
    assert throughput.read() == {}
    for _ in range(4):
        with throughput.waiting():
            clock.now += 0.5
        clock.now += 1.5
        throughput.step()
    with throughput.paused():
        clock.now += 100
    figures = throughput.read()
    assert figures == pytest.approx(
        {
            "train/examples_per_second": 16,
            "train/seconds_per_step": 2,
            "train/input_wait_share": 0.25,
            "train/model_flops_per_second": 16e9,
            "train/mfu": 0.016,
        }
    )
    clock.now += 1
    throughput.step()
    again = throughput.read()
    assert again["train/input_wait_share"] == 0 and again["train/examples_per_second"] == 32


def test_no_mfu_where_the_peak_is_not_known():
    clock = Clock()
    throughput = Throughput(32, 1e9, None, clock)
    clock.now = 1.0
    throughput.step()
    assert "train/mfu" not in throughput.read()
