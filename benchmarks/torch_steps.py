"""Training steps of a torch model, timed: what the peers' halves of the benchmarks share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.in_turn import timed
from tests.parity.torch_imports import declare_operators


def parser_of(description: str, steps: int, warmup: int) -> argparse.ArgumentParser:
    """The flags of a peer's run."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--warmup", type=int, default=warmup)
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    return parser


def prepare() -> None:
    """Makes transformers importable beside any build of torch, which gets all cores."""
    declare_operators()
    torch.set_num_threads(os.cpu_count() or 1)


def record(model: nn.Module, loss_of: Callable[[nn.Module], torch.Tensor], arguments: argparse.Namespace) -> dict:
    """Times the steps of torch's fused AdamW on what of the model trains."""
    runner = torch.compile(model) if arguments.compile else model
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.1, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(runner)
        loss.backward()
        optimizer.step()
        return loss.item()

    return {
        "impl": "transformers", "compile": arguments.compile, "parameters": sum(p.numel() for p in trained),
        **timed(step, arguments), "torch": torch.__version__,
    }  # fmt: skip
