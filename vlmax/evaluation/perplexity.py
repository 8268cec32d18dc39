"""Perplexity and exact answers: how well a language model knows texts that it was not trained on."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
from jax.sharding import Mesh

from vlmax.data.batches import BatchInfo
from vlmax.data.example import Preprocess, Source
from vlmax.errors import InputError
from vlmax.evaluation import features
from vlmax.evaluation.evaluation import Context
from vlmax.evaluation.limit import first
from vlmax.systems.system import Scores


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Scores `perplexity`, `accuracy`, `exact`, `examples` and `tokens`.

    `perplexity` is e to the mean negative log-likelihood of a token, `accuracy` the share of tokens whose logit is the
    highest, both over all learned tokens of all examples alike; `exact` is the share of examples of which all learned
    tokens are right. Where the preprocess learns answers alone, these are the examples that greedy decoding answers
    word by word, up to the mark of the end: each token is scored after the right ones, which decoding then wrote.
    """

    source: Source
    """Texts."""
    preprocess: Preprocess
    """Makes the features that the system reads of one text; its labels say what is scored."""
    name: str = "text"
    """Names the scores: `eval/<name>/perplexity`."""
    batch_size: int = 64
    """Texts at once over all devices."""
    limit: int | None = None
    """Only the first so many texts; None for all."""

    def needs(self) -> type:
        """A system that scores texts."""
        return Scores

    def check(self, mesh: Mesh) -> None:
        """Opens source and preprocess; raises `InputError` for sizes that do not fit."""
        features.check_batch_size(self.name, self.batch_size, mesh)
        self.preprocess.features()
        first(self.source, self.limit, f"evaluation {self.name!r}").open()

    def run(self, context: Context) -> dict[str, float]:
        """The scores by their full names; raises `InputError` as `check` does, and where nothing is learned."""
        features.check_batch_size(self.name, self.batch_size, context.mesh)
        where = f"evaluation {self.name!r}"
        source = first(self.source, self.limit, where)
        read = self.preprocess.features()

        def score(batch: features.Arrays) -> features.Arrays:
            return context.score({name: batch[name] for name in read})

        counts: collections.Counter[str] = collections.Counter()

        def record(info: BatchInfo) -> None:
            context.record(info)
            counts.update(info.counts)

        heard = dataclasses.replace(context, record=record)
        found = features.source_features(heard, self.name, source, self.preprocess, self.batch_size, score)
        if counts["truncated"]:
            context.log(
                f"{where}: {counts['truncated']} texts of this process are longer than a row of its preprocess, and of "
                "each a piece is scored; lengthen the rows"
            )
        nll, right, tokens = (found[name].astype(np.float64) for name in ("nll", "right", "tokens"))
        if not tokens.all():
            raise InputError(
                f"{where}: {int((tokens == 0).sum())} of {len(tokens)} texts have no learned token; check what its "
                "preprocess learns"
            )
        scores = {
            "perplexity": float(np.exp(nll.sum() / tokens.sum())),
            "accuracy": float(right.sum() / tokens.sum()),
            "exact": float(np.mean(right == tokens)),
            "examples": float(len(tokens)),
            "tokens": float(tokens.sum()),
        }
        return {f"eval/{self.name}/{score}": value for score, value in scores.items()}
