"""Plain ResNets as Hugging Face stores them, without a classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlmax.errors import InputError
from vlmax.interop.family import IMAGE_FILES, Family, Json, field, only
from vlmax.interop.table import LeftOut, Row
from vlmax.models.encoders.resnet import ResNet

STAGES = 4


# i and o channels in and out, y and x the sides of a kernel.
def conv(own: str, foreign: str, **more: int) -> tuple[Row, ...]:
    """A convolution without bias."""
    return (Row(f"{own}/kernel", f"{foreign}.weight", "y x i o = o i y x", **more),)


def batch_norm(own: str, foreign: str, **more: int) -> tuple[Row, ...]:
    """Scale and bias, and the statistics."""
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return tuple(Row(f"{own}/{ours}", f"{foreign}.{theirs}", "C = C", **more) for ours, theirs in names.items())


def blocks(stage: int, block: Callable[[str, str, int], tuple[Row, ...]], foreign: str) -> tuple[Row, ...]:
    """The blocks of a stage: the first, and the others, which are stacked and count from 1."""
    own = f"stage{stage + 1}"
    first = foreign.format(stage=stage, layer=0)
    return (*block(f"{own}/first", first, 0), *block(f"{own}/rest", foreign.format(stage=stage, layer="{layer}"), 1))


def block(own: str, foreign: str, first: int) -> tuple[Row, ...]:
    """One block."""
    rows: tuple[Row, ...] = ()
    for i in range(3):
        rows += conv(f"{own}/conv{i + 1}", f"{foreign}.layer.{i}.convolution", first=first)
        rows += batch_norm(f"{own}/norm{i + 1}", f"{foreign}.layer.{i}.normalization", first=first)
    if first == 0:
        rows += conv(f"{own}/shortcut_conv", f"{foreign}.shortcut.convolution")
        rows += batch_norm(f"{own}/shortcut_norm", f"{foreign}.shortcut.normalization")
    return rows


ROWS = (
    *conv("stem_conv", "embedder.embedder.convolution"),
    *batch_norm("stem_norm", "embedder.embedder.normalization"),
    *(row for i in range(STAGES) for row in blocks(i, block, "encoder.stages.{stage}.layers.{layer}")),
)


def read(found: Json) -> ResNet:
    """Our configuration; the format does not say the size of images, so that of 224 pixels is taken."""
    only(found, "layer_type", ("bottleneck",), "bottleneck")
    only(found, "hidden_act", ("relu",), "relu")
    only(found, "downsample_in_first_stage", (False,), False)
    only(found, "downsample_in_bottleneck", (False,), False)
    stem = field(found, "embedding_size", 64)
    widths = list(field(found, "hidden_sizes", [256, 512, 1024, 2048]))
    if widths != [4 * stem * 2**i for i in range(STAGES)]:
        raise InputError(f"config.json: hidden_sizes {widths} are not 4, 8, 16 and 32 times embedding_size {stem}")
    first, second, third, fourth = field(found, "depths", [3, 4, 6, 3])
    return ResNet(stem=stem, depths=(first, second, third, fourth))


def write(config: ResNet) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": ["ResNetModel"],
        "model_type": "resnet",
        "embedding_size": config.stem,
        "hidden_sizes": [4 * config.stem * 2**i for i in range(STAGES)],
        "depths": list(config.depths),
        "num_channels": 3,
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }


def batches_tracked(config: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """A counter beside every batch norm, which nothing reads."""
    means = [name for name in names if name.endswith("running_mean")]
    return {name.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64) for name in means}


FAMILY = Family(
    name="resnet",
    model_types=("resnet",),
    config=ResNet,
    read=read,
    write=write,
    rows=ROWS,
    arguments=lambda config: {"images": np.zeros((1, 32, 32, 3), np.float32), "deterministic": True},
    renamed=((r"^resnet\.", ""),),
    left_out=(
        LeftOut(r".*\.num_batches_tracked"),
        LeftOut(r"classifier\..*", "vlmax's image encoders have no classifier"),
    ),
    written=batches_tracked,
    files=("config.json", *IMAGE_FILES),
)
