"""Evaluations of a run: what the system can do as the jitted functions that an evaluation is given."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from vlmax.data.batches import BatchInfo
from vlmax.data.example import Tokenizes
from vlmax.data.preprocess import ImageOnly
from vlmax.described import resolved
from vlmax.errors import InputError
from vlmax.evaluation.evaluation import Context, Evaluation, absent
from vlmax.evaluation.prompting import Prompts
from vlmax.evaluation.writing import Writer
from vlmax.experiment import Experiment
from vlmax.systems.system import Embeds, Matches, Writes
from vlmax.training.setup import Run
from vlmax.training.state import TrainState, params_for_evaluation

FOLDER = "evaluations"
"""In a run's directory: the scores of every evaluation."""


class Evaluator:
    """Runs an experiment's evaluations; its functions are compiled once, however often it is called.

    Raises:
      InputError: an evaluation needs what the system does not have.
    """

    def __init__(self, run: Run, workdir: Path, log: Callable[[str], None], record: Callable[[BatchInfo], Any]):
        self.run, self.workdir, self.log, self.record = run, workdir, log, record
        check_needs(run.experiment)
        system, preprocess = run.experiment.system, run.experiment.data.preprocess
        methods = {"embed_images": "image_features", "embed_texts": "text_features"}
        methods |= {name: name for name in ("score", "image_tokens", "match")}
        self._functions = {
            field: jax.jit(getattr(system, method)) for field, method in methods.items() if hasattr(system, method)
        }
        self._tokenize = preprocess.tokenize if isinstance(preprocess, Tokenizes) else absent

    def __call__(self, state: TrainState) -> dict[str, float]:
        """All scores by their full names; every process must call it together."""
        experiment = self.run.experiment
        weights = (params_for_evaluation(state), state.carried)
        bound = {field: functools.partial(function, *weights) for field, function in self._functions.items()}
        system = experiment.system
        outputs: dict[str, Sequence[Mapping[str, Any]]] = {}
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
            writer=functools.partial(Writer, system, *weights) if isinstance(system, Writes) else absent,
            image_tokens=bound.get("image_tokens", absent),
            match=bound.get("match", absent),
            keep=outputs.__setitem__,
        )
        scores: dict[str, float] = {}
        for evaluation in experiment.evaluations:
            found = evaluation.run(context)
            scores |= found
            if jax.process_index() == 0:
                self._write(evaluation, int(state.step), found, outputs.get(evaluation.name))
        return scores

    def _write(self, evaluation: Evaluation, step: int, scores: Mapping[str, float], outputs: Any) -> None:
        """`evaluations/<step>/<name>.json`: scores, what they are scores of, and what the system wrote."""
        path = self.workdir / FOLDER / str(step) / f"{evaluation.name.replace('/', '-')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = resolved(self.run.experiment.evaluation_image)
        told = {"step": step, "scores": scores, "evaluation": resolved(evaluation), "image": image}
        path.write_text(json.dumps(told if outputs is None else {**told, "outputs": outputs}, indent=1) + "\n")


def check_needs(experiment: Experiment) -> None:
    """Raises InputError where an evaluation asks for what system or preprocess cannot do, or in other tokens."""
    system, preprocess = experiment.system, experiment.data.preprocess
    for evaluation in experiment.evaluations:
        needed = evaluation.needs()
        lacks = [] if isinstance(system, needed) else [f"{type(system).__name__} is not"]
        if needed in (Embeds, Matches) and not isinstance(preprocess, Tokenizes):
            lacks.append(f"its prompts are tokenized by data.preprocess, and {type(preprocess).__name__} does not")
        if lacks:
            raise InputError(
                f"evaluation {evaluation.name!r} of {experiment.name!r}: it needs a system that is "
                f"{needed.__name__} (vlmax/systems/system.py); {'; '.join(lacks)}; take it out of the field "
                "`evaluations`, or another in its place"
            )
        if isinstance(evaluation, Prompts):
            evaluation.check_prompts(system, preprocess)
