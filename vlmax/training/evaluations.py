"""Evaluations of a run: the system's encoders as the jitted functions that an evaluation is given."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from vlmax.data.batches import BatchInfo
from vlmax.data.example import Tokenizes
from vlmax.data.preprocess import ImageOnly
from vlmax.errors import InputError
from vlmax.evaluation.evaluation import Context
from vlmax.systems.system import Embeds
from vlmax.training.setup import Run
from vlmax.training.state import TrainState, params_for_evaluation


class Evaluator:
    """Runs an experiment's evaluations; its functions are compiled once, however often it is called."""

    def __init__(self, run: Run, log: Callable[[str], None], record: Callable[[BatchInfo], Any]):
        self.run, self.log, self.record = run, log, record
        system, preprocess = run.experiment.system, run.experiment.data.preprocess
        if not isinstance(system, Embeds) or not isinstance(preprocess, Tokenizes):
            raise InputError(
                f"evaluations of {run.experiment.name!r}: they need a system with image and text features and a "
                f"preprocess that tokenizes, not {type(system).__name__} and {type(preprocess).__name__}; leave the "
                "field `evaluations` empty"
            )
        self._image = jax.jit(system.image_features)
        self._text = jax.jit(system.text_features)
        self._tokenize = preprocess.tokenize

    def __call__(self, state: TrainState) -> dict[str, float]:
        """All scores by their full names; every process must call it together."""
        experiment = self.run.experiment
        weights = (params_for_evaluation(state), state.carried)
        context = Context(
            mesh=self.run.mesh,
            embed_images=functools.partial(self._image, *weights),
            embed_texts=functools.partial(self._text, *weights),
            image=ImageOnly(experiment.evaluation_image),
            tokenize=self._tokenize,
            log=self.log,
            record=self.record,
            workers=experiment.data.workers,
            threads=experiment.data.threads,
        )
        scores: dict[str, float] = {}
        for evaluation in experiment.evaluations:
            scores |= evaluation.run(context)
        return scores
