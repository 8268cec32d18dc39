"""Evaluations of a run: the system's encoders as the jitted functions that an evaluation is given."""

from __future__ import annotations

from vlmax.evaluation.evaluation import Context
from vlmax.reporting.reporter import Reporter
from vlmax.training.setup import Run
from vlmax.training.state import TrainState, evaluation_params
