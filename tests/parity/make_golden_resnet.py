"""Makes tests/golden/resnet.npz and tests/golden/modified_resnet.npz from the reference implementations.

    python -m tests.parity.make_golden_resnet        (needs requirements-parity.txt)

Tiny networks with random weights, float16 in the file: images, then outputs in evaluation, outputs in training, the
running statistics after that one training forward pass, and the gradients of a weighted sum of the pooled output.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.parity.torch_imports import open_clip

ModifiedResNet = open_clip("modified_resnet").ModifiedResNet  # before transformers, which imports torchvision too

from transformers import ResNetConfig, ResNetModel  # noqa: E402

DEPTHS = (1, 3, 2, 1)
STEM = 2
HEADS = 4
OUTPUT = 10
IMAGE = 64
CHECKED_GRADIENTS = {
    "resnet": ("embedder.embedder.convolution.weight", "encoder.stages.1.layers.2.layer.1.normalization.weight"),
    "modified_resnet": ("conv1.weight", "layer2.2.bn2.weight", "attnpool.k_proj.weight"),
}


def transformers_resnet() -> torch.nn.Module:
    widths = [4 * STEM * 2**i for i in range(4)]
    return ResNetModel(ResNetConfig(embedding_size=STEM, hidden_sizes=widths, depths=list(DEPTHS)))


def open_clip_resnet() -> torch.nn.Module:
    return ModifiedResNet(list(DEPTHS), OUTPUT, HEADS, IMAGE, STEM)


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Random weights and statistics that float16 holds exactly."""
    rng = np.random.default_rng(seed)
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = rng.normal(size=value.shape)
        if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
            new = 1 + 0.2 * np.abs(noise)
        elif value.ndim == 4:
            new = noise * np.sqrt(2 / np.prod(value.shape[1:]))
        else:
            new = 0.3 * noise
        value.copy_(torch.from_numpy(new.astype(np.float16).astype(np.float32)))


def forward(model: torch.nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B, N, D] and pooled [B, E]."""
    if isinstance(model, ModifiedResNet):
        x = model.stem(images)
        for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
            x = layer(x)
        return x.flatten(2).transpose(1, 2), model.attnpool(x)
    output = model(images)
    return output.last_hidden_state.flatten(2).transpose(1, 2), output.pooler_output.flatten(1)


def reference(model: torch.nn.Module, images: np.ndarray, probe: np.ndarray) -> dict[str, np.ndarray]:
    """Everything the tests compare; leaves the model with its new running statistics."""
    nchw = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).requires_grad_()
    model.eval()
    with torch.no_grad():
        tokens, pooled = forward(model, nchw)
    model.train()
    train_tokens, train_pooled = forward(model, nchw)
    (train_pooled * torch.from_numpy(probe)).sum().backward()
    results = {"eval/tokens": tokens, "eval/pooled": pooled, "train/tokens": train_tokens, "train/pooled": train_pooled}
    results |= {f"after/{k}": v for k, v in model.state_dict().items() if "running" in k}
    results |= {f"gradient/{k}": v.grad for k, v in model.named_parameters()}
    results["gradient/images"] = nchw.grad.permute(0, 2, 3, 1)
    return {k: v.detach().numpy() for k, v in results.items()}


def case(name: str, seed: int = 0) -> tuple[torch.nn.Module, dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """A model with random weights, its state, images and the weights of the sum that is differentiated."""
    model = transformers_resnet() if name == "resnet" else open_clip_resnet()
    with torch.no_grad():
        randomise(model, seed)
    rng = np.random.default_rng(seed + 1)
    images = rng.normal(size=(3, IMAGE, IMAGE, 3)).astype(np.float16).astype(np.float32)
    probe = rng.normal(size=(3, OUTPUT if name != "resnet" else 32 * STEM)).astype(np.float16).astype(np.float32)
    state = {k: v.numpy().copy() for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    return model, state, images, probe


def main() -> None:
    for name, checked in CHECKED_GRADIENTS.items():
        model, state, images, probe = case(name)
        results = reference(model, images, probe)
        kept = {k: v for k, v in results.items() if not k.startswith("gradient/")}
        kept |= {f"gradient/{k}": results[f"gradient/{k}"] for k in checked}
        inputs = {f"state/{k}": v.astype(np.float16) for k, v in state.items()}
        path = Path(__file__).parents[1] / "golden" / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, images=images.astype(np.float16), probe=probe.astype(np.float16), **inputs, **kept)
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
