"""Evaluations of a run: what the system can do as the jitted functions that an evaluation is given."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from vlmax.data.batches import BatchInfo
from vlmax.data.example import Tokenizes
from vlmax.data.preprocess import ImageOnly
from vlmax.errors import InputError
from vlmax.evaluation.evaluation import Context, absent
from vlmax.experiment import Experiment
from vlmax.systems.system import Embeds
from vlmax.training.setup import Run
from vlmax.training.state import TrainState, params_for_evaluation


class Evaluator:
    """Runs an experiment's evaluations; its functions are compiled once, however often it is called.

    Raises:
      InputError: an evaluation needs what the system does not have.
    """

    def __init__(self, run: Run, log: Callable[[str], None], record: Callable[[BatchInfo], Any]):
        self.run, self.log, self.record = run, log, record
        check_needs(run.experiment)
        system, preprocess = run.experiment.system, run.experiment.data.preprocess
        methods = {"embed_images": "image_features", "embed_texts": "text_features", "score": "score"}
        self._functions = {
            field: jax.jit(getattr(system, method)) for field, method in methods.items() if hasattr(system, method)
        }
        self._tokenize = preprocess.tokenize if isinstance(preprocess, Tokenizes) else absent

    def __call__(self, state: TrainState) -> dict[str, float]:
        """All scores by their full names; every process must call it together."""
        experiment = self.run.experiment
        weights = (params_for_evaluation(state), state.carried)
        bound = {field: functools.partial(function, *weights) for field, function in self._functions.items()}
        context = Context(
            mesh=self.run.mesh,
            embed_images=bound.get("embed_images", absent),
            embed_texts=bound.get("embed_texts", absent),
            image=ImageOnly(experiment.evaluation_image),
            tokenize=self._tokenize,
            log=self.log,
            record=self.record,
            workers=experiment.data.workers,
            threads=experiment.data.threads,
            score=bound.get("score", absent),
        )
        scores: dict[str, float] = {}
        for evaluation in experiment.evaluations:
            scores |= evaluation.run(context)
        return scores


def check_needs(experiment: Experiment) -> None:
    """Raises InputError where an evaluation asks for what system or preprocess cannot do."""
    system, preprocess = experiment.system, experiment.data.preprocess
    for evaluation in experiment.evaluations:
        needed = evaluation.needs()
        lacks = [] if isinstance(system, needed) else [f"{type(system).__name__} is not"]
        if needed is Embeds and not isinstance(preprocess, Tokenizes):
            lacks.append(f"its prompts are tokenized by data.preprocess, and {type(preprocess).__name__} does not")
        if lacks:
            raise InputError(
                f"evaluation {evaluation.name!r} of {experiment.name!r}: it needs a system that is "
                f"{needed.__name__} (vlmax/systems/system.py); {'; '.join(lacks)}; take it out of the field "
                "`evaluations`, or another in its place"
            )
