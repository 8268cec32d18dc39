"""Reads the small files that the scripts in tests/parity write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def encoder(kind: str) -> dict[str, Any]:
    """What `tests.parity.reference.run` gave for that model."""
    with np.load(GOLDEN / f"{kind}.npz") as file:
        arrays = dict(file)
    weights = {name.removeprefix("weights/"): value for name, value in arrays.items() if name.startswith("weights/")}
    return {**arrays, "config": json.loads(str(arrays["config"])), "weights": weights}
