"""Model FLOPs of a training step, and what share of the device's peak they are.

Conventions: matrix products only, a multiply-add counts as 2, attention over the full square. A trained part costs
three times its forward pass (the forward pass, the gradient of its inputs and that of its weights), a frozen part once.
Recomputation under rematerialisation, the optimizer, norms, activations and look-ups are not counted.

    model_flops_per_second = examples_per_second * train_flops_per_example
    mfu                    = model_flops_per_second / (devices * peak_flops(device_kind))
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

# Peak dense bfloat16 FLOP/s of one JAX device, by `device_kind`.
# TPU: cloud.google.com/tpu/docs, one page a version; the table of jax/_src/pallas/mosaic/tpu_info.py (JAX 0.10) agrees
# to 1 % but for v3, where it has 140e12. On v2, v3 and 7x a JAX device is one of a chip's two cores, so half the chip's
# figure; on v4 and v5p it is the whole chip.
# GPU: NVIDIA's data sheets, the figure without sparsity.
_PEAK_BF16_FLOPS = {
    "TPU v2": 46e12 / 2,
    "TPU v3": 123e12 / 2,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA GH200 480GB": 989.4e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}


def train_flops_per_example(forward: Mapping[str, float], frozen: Collection[str] = ()) -> float:
    """FLOPs of training on one example: 3 x the forward pass of each trained part, 1 x that of each frozen one.

    Args:
      forward: forward FLOPs of one example by part, a system's `flops_per_example()`.
      frozen: names of the parts none of whose parameters train; every one must be in `forward`.

    Raises:
      ValueError: `frozen` names a part that `forward` does not have.
    """
    unknown = sorted(set(frozen) - set(forward))
    if unknown:
        raise ValueError(f"frozen parts {unknown} are not among the parts with FLOPs, {sorted(forward)}")
    return sum((1.0 if part in frozen else 3.0) * flops for part, flops in forward.items())


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of one device of this kind (`jax.Device.device_kind`); None where not known."""
    return _PEAK_BF16_FLOPS.get(device_kind)
