import jax
import pytest

from vlmax.reporting.flops import peak_flops, train_flops_per_example


def test_trained_parts_count_three_times_and_frozen_ones_once():
    forward = {"image": 10.0, "text": 4.0, "logits": 1.0}
    assert train_flops_per_example(forward) == 45
    assert train_flops_per_example(forward, frozen=("image",)) == 25
    with pytest.raises(ValueError, match="imag"):
        train_flops_per_example(forward, frozen=("imag",))


def test_peaks():
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("NVIDIA H200") == 989.4e12
    assert peak_flops(jax.devices("cpu")[0].device_kind) is None
