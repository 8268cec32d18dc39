"""Torch names of ResNet weights to vlmax's tree, for the parity tests. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

State = Mapping[str, np.ndarray]


def _conv(state: State, name: str) -> dict:
    return {"kernel": state[f"{name}.weight"].transpose(2, 3, 1, 0)}


def _put(tree: dict, stats: dict, state: State, name: str, conv: str, norm: str, norm_name: str) -> None:
    tree[name] = _conv(state, conv)
    put_norm(tree, stats, state, norm_name, norm)


def put_norm(tree: dict, stats: dict, state: State, name: str, norm: str) -> None:
    tree[name] = {"scale": state[f"{norm}.weight"], "bias": state[f"{norm}.bias"]}
    stats[name] = {"mean": state[f"{norm}.running_mean"], "var": state[f"{norm}.running_var"]}


def _stack(trees: list[dict]) -> dict:
    return {k: _stack([t[k] for t in trees]) if isinstance(v, dict) else np.stack([t[k] for t in trees])
            for k, v in trees[0].items()}  # fmt: skip


def _stages(
    state: State, depths: tuple[int, ...], block: Callable[[int, int], list[tuple[str, str, str, str]]]
) -> tuple:
    params, stats = {}, {}
    for stage, depth in enumerate(depths):
        blocks = []
        for i in range(depth):
            tree, stat = {}, {}
            for name, conv, norm_name, norm in block(stage, i):
                if f"{conv}.weight" in state:
                    _put(tree, stat, state, name, conv, norm, norm_name)
            blocks.append((tree, stat))
        params[f"stage{stage + 1}"] = {"first": blocks[0][0]}
        stats[f"stage{stage + 1}"] = {"first": blocks[0][1]}
        if depth > 1:
            params[f"stage{stage + 1}"]["rest"] = _stack([b[0] for b in blocks[1:]])
            stats[f"stage{stage + 1}"]["rest"] = _stack([b[1] for b in blocks[1:]])
    return params, stats


def from_transformers(state: State, depths: tuple[int, ...]) -> dict:
    """`transformers.ResNetModel` -> variables of `ResNetModule`."""

    def block(stage: int, i: int) -> list[tuple[str, str, str, str]]:
        base = f"encoder.stages.{stage}.layers.{i}"
        parts = [(f"{base}.layer.{j}", f"conv{j + 1}", f"norm{j + 1}") for j in range(3)]
        parts.append((f"{base}.shortcut", "shortcut_conv", "shortcut_norm"))
        return [(name, f"{old}.convolution", norm, f"{old}.normalization") for old, name, norm in parts]

    params, stats = _stages(state, depths, block)
    stem = "embedder.embedder"
    _put(params, stats, state, "stem_conv", f"{stem}.convolution", f"{stem}.normalization", "stem_norm")
    return {"params": params, "batch_stats": stats}


def from_open_clip(state: State, depths: tuple[int, ...], heads: int) -> dict:
    """`open_clip.modified_resnet.ModifiedResNet` -> variables of `ModifiedResNetModule`."""

    def block(stage: int, i: int) -> list[tuple[str, str, str, str]]:
        base = f"layer{stage + 1}.{i}"
        parts = [(f"conv{j}", f"{base}.conv{j}", f"norm{j}", f"{base}.bn{j}") for j in (1, 2, 3)]
        return [*parts, ("shortcut_conv", f"{base}.downsample.0", "shortcut_norm", f"{base}.downsample.1")]

    params, stats = _stages(state, depths, block)
    for j in (1, 2, 3):
        _put(params, stats, state, f"stem_conv{j}", f"conv{j}", f"bn{j}", f"stem_norm{j}")
    pool = {"positions": state["attnpool.positional_embedding"]}
    width = pool["positions"].shape[1]
    for name, old in (("query", "q"), ("key", "k"), ("value", "v")):
        kernel, bias = state[f"attnpool.{old}_proj.weight"].T, state[f"attnpool.{old}_proj.bias"]
        pool[name] = {"kernel": kernel.reshape(width, heads, -1), "bias": bias.reshape(heads, -1)}
    kernel = state["attnpool.c_proj.weight"].T
    pool["out"] = {"kernel": kernel.reshape(heads, width // heads, -1), "bias": state["attnpool.c_proj.bias"]}
    return {"params": {**params, "pool": pool}, "batch_stats": stats}
