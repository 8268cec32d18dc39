"""Model FLOPs of a training step, and what share of the device's peak they are.

Conventions: matrix products only, a multiply-add counts as 2, attention over the full square. A trained part costs
three times its forward pass (the forward pass, the gradient of its inputs and that of its weights), a frozen part once,
or twice where a part that it reads from trains, as a frozen language model behind a connector.
Of a part that trains in part, as a base does beside its adapters, the gradient of the weights counts by the share of
its matrices that train (`forward_passes`), attention as if it had weights, too.
Recomputation under rematerialisation, the optimizer, norms, activations and look-ups are not counted.

    model_flops_per_second = examples_per_second * train_flops_per_example
    mfu                    = model_flops_per_second / (devices * peak_flops(device_kind))
"""

from __future__ import annotations

from collections.abc import Mapping

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


def forward_passes(trained: int, fixed: int, adapters: int = 0) -> float:
    """What training costs a part of which something trains, in forward passes of it without adapters.

    Forward pass and gradient of the inputs go through all its matrices, the gradient of weights through those alone
    that train. So 3 where all do, and 2 and a little beside adapters. A matrix costs in proportion to its parameters.

    Args:
      trained: parameters in matrices that train, those of adapters included.
      fixed: parameters in the other matrices.
      adapters: those of them all that are adapters', which the FLOPs of the forward pass do not know.
    """
    own = trained + fixed - adapters
    return (2 * (trained + fixed) + trained) / own if own else 3.0


def train_flops_per_example(forward: Mapping[str, float], passes: Mapping[str, float]) -> float:
    """FLOPs of training on one example.

    Args:
      forward: forward FLOPs of one example by part, a system's `flops_per_example()`.
      passes: how many forward passes training costs a part; 3 where it is not named.

    Raises:
      ValueError: `passes` names a part that `forward` does not have.
    """
    unknown = sorted(set(passes) - set(forward))
    if unknown:
        raise ValueError(f"the parts {unknown} are not among those with FLOPs, {sorted(forward)}")
    return sum(passes.get(part, 3.0) * flops for part, flops in forward.items())


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of one device of this kind (`jax.Device.device_kind`); None where not known."""
    return _PEAK_BF16_FLOPS.get(device_kind)
