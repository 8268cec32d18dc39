import jax
import pytest

from vlmax.reporting.flops import forward_passes, peak_flops, train_flops_per_example


def test_trained_parts_count_three_times_and_others_as_often_as_is_said():
    forward = {"image": 10.0, "text": 4.0, "logits": 1.0}
    assert train_flops_per_example(forward, {}) == 45
    assert train_flops_per_example(forward, {"image": 1.0}) == 25
    with pytest.raises(ValueError, match="imag"):
        train_flops_per_example(forward, {"imag": 1.0})


def test_a_base_beside_its_adapters_has_no_gradient_of_its_weights():
    assert forward_passes(trained=100, fixed=0) == 3
    assert forward_passes(trained=50, fixed=50) == 2.5
    assert forward_passes(trained=5, fixed=100, adapters=5) == 2 + 3 * 0.05  # the adapters themselves three times
    assert forward_passes(trained=0, fixed=100) == 2  # what else trains, such as a table, has gradients pass through
    assert forward_passes(trained=0, fixed=0) == 3


def test_peaks():
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("NVIDIA H200") == 989.4e12
    assert peak_flops(jax.devices("cpu")[0].device_kind) is None
