"""What several processes, or one, do in test_multi_process.py beside zero-shot classification and retrieval."""

from __future__ import annotations

import dataclasses
from typing import Any

from tests.evaluation import test_reranking, tiny_writer
from tests.evaluation.stand_in import Pictures, random_pictures
from tests.evaluation.test_question_answering import CANDIDATES, EXAMPLES
from vlmax.decoding.settings import Generation
from vlmax.evaluation.captioning import Captioning
from vlmax.evaluation.question_answering import ByRank, QuestionAnswering
from vlmax.evaluation.reranking import Reranking


def run() -> dict[str, Any]:
    """Scores, and what was written."""
    outputs: dict[str, Any] = {}
    pictures, prompting = Pictures(EXAMPLES, broken=(2,)), tiny_writer.prompting("bert")
    settings, answering = Generation(max_new_tokens=5, beams=2), ByRank(CANDIDATES, first=4, at_once=2)
    with tiny_writer.meshed((4, 2, 1, 1)) as mesh:
        given = dataclasses.replace(tiny_writer.context("bert", keep=outputs.__setitem__), mesh=mesh)
        captioning = Captioning(pictures, prompting, prompt="abc", settings=settings, batch_size=8)
        scores: dict[str, Any] = captioning.run(given)
        scores |= QuestionAnswering(pictures, prompting, length=12, answering=answering, batch_size=8).run(given)
        source = Pictures(random_pictures(21, 4), broken=(3,))
        reranking = Reranking(source, captions=1, k_test=5, batch_size=8, images_at_once=8, texts_at_once=4)
        scores |= reranking.run(dataclasses.replace(test_reranking.context(), mesh=mesh))
    return {**scores, **outputs}
