"""AdamW beside torch's."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training import test_optimizers as case


def test_adamw_is_torchs():
    torch = pytest.importorskip("torch")
    weight, bias = (torch.nn.Parameter(torch.tensor(start)) for start in (case.WEIGHT, case.BIAS))
    groups = [
        {"params": [weight], "weight_decay": 0.2, "multiplier": 0.1},
        {"params": [bias], "weight_decay": 0.0, "multiplier": 1.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6)
    for step, scale in enumerate(case.GRADIENT_SCALES):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / 5) * group["multiplier"]
        weight.grad = scale * torch.tensor(case.WEIGHT_GRADIENT)
        bias.grad = scale * torch.tensor(case.BIAS_GRADIENT)
        optimizer.step()
    np.testing.assert_allclose(weight.detach().numpy(), case.TORCH_WEIGHT, rtol=1e-6)
    np.testing.assert_allclose(bias.detach().numpy(), case.TORCH_BIAS, rtol=1e-6)
    found = case.adamw_case()
    np.testing.assert_allclose(found["weight"], weight.detach().numpy(), rtol=2e-6)
    np.testing.assert_allclose(found["bias"], bias.detach().numpy(), rtol=2e-6)
