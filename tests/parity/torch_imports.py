"""Imports that the comparisons with PyTorch need."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

_declared = []  # a declaration lasts as long as its object


def open_clip(submodule: str = "") -> ModuleType:
    """`open_clip`, or one of its submodules, beside any build of torch."""
    declare_operators()
    return importlib.import_module(f"open_clip.{submodule}" if submodule else "open_clip")


def transformers() -> ModuleType:
    """`transformers`, beside any build of torch."""
    if importlib.util.find_spec("torchvision"):
        declare_operators()
    return importlib.import_module("transformers")


def declare_operators() -> None:
    """Makes torchvision importable beside any build of torch.

    Its wheel on PyPI is built for CUDA: beside a CPU build of torch two of its operators are missing and the import
    fails. They are never called here, so declaring them is enough.
    """
    import torch

    if not _declared and not _has_operator():
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)


def _has_operator() -> bool:
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        return False
    return True
