"""Writes tests/golden/vqa.json: what the official evaluation of VQA makes of several hundred answers.

python -m tests.parity.make_golden_vqa VQA/PythonEvaluationTools/vqaEvaluation/vqaEval.py

The file is of https://github.com/GT-Vision-Lab/VQA at a013f00. It is for Python 2; only its `print` has to be changed.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import sys
import types
from pathlib import Path
from typing import Any

from tests.shared import REPOSITORY

PIECES = (
    "yes No red Dog a An the two Three none 2 10 1,000 3.5 .5 5. u.s.a. t-shirt black/white what?! (left) [x] 'twas "
    "dont couldnt've shes let's somebody'd it's o'clock Im e.g., @home a_b a;b ; - , . ? ! + = \" ` \\ <b> {c}"
)
GAPS = (" ", " ", " ", "  ", "\t", "\n", "", ", ", " - ")


def main() -> None:
    """Cleaned answers, every short form among them, and accuracies in percent."""
    official = types.ModuleType("official")
    source = Path(sys.argv[1]).read_text(encoding="utf-8")
    exec(re.sub(r'print ("[^"]*")', r"print(\1)", source), official.__dict__)
    rng = random.Random(0)
    answers = [*PIECES.split(), *(_answer(rng) for _ in range(300))]
    questions = [_question(rng, answers) for _ in range(300)]
    people = {i: _annotated(given) for i, (_, given) in enumerate(questions)}
    scorer = official.VQAEval(
        types.SimpleNamespace(qa=people, getQuesIds=people.keys),
        types.SimpleNamespace(qa={i: {"answer": answer} for i, (answer, _) in enumerate(questions)}),
    )
    answers += sorted(scorer.contractions)
    lines = [answer.replace("\n", " ").replace("\t", " ").strip() for answer in answers]
    with contextlib.redirect_stdout(io.StringIO()):
        scorer.evaluate()
    golden = {
        "cleaned": [
            [answer, scorer.processDigitArticle(scorer.processPunctuation(line))]
            for answer, line in zip(answers, lines, strict=True)
        ],
        "accuracies": [[answer, given, scorer.evalQA[i]] for i, (answer, given) in enumerate(questions)],
    }
    path = REPOSITORY / "tests" / "golden" / "vqa.json"
    path.write_text(json.dumps(golden) + "\n")


def _answer(rng: random.Random) -> str:
    return "".join(rng.choice(PIECES.split()) + rng.choice(GAPS) for _ in range(rng.randint(1, 4)))


def _question(rng: random.Random, answers: list[str]) -> tuple[str, list[str]]:
    """An answer, and ten of people that are one and the same, or one of few, written in several ways."""
    few = [rng.choice(answers) for _ in range(rng.randint(1, 3))]
    ways = [way(text) for text in few for way in (str, str, str.lower, str.upper, str.strip)]
    people = [few[0]] * 10 if rng.random() < 0.2 else rng.choices(ways, k=10)
    return rng.choice(ways), people


def _annotated(people: list[str]) -> dict[str, Any]:
    return {
        "question_type": "none of the above",
        "answer_type": "other",
        "answers": [{"answer": answer, "answer_id": i + 1} for i, answer in enumerate(people)],
    }


if __name__ == "__main__":
    main()
