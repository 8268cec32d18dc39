"""Whether a system can do what an experiment's evaluations ask of it is found out before the run."""

from __future__ import annotations

import json

import pytest

from tests import tiny, tiny_text
from tests.data.stand_ins import Numbers, Texts
from vlmax.errors import InputError
from vlmax.evaluation.perplexity import Perplexity
from vlmax.evaluation.retrieval import Retrieval
from vlmax.evaluation.zero_shot import ZeroShot
from vlmax.training.evaluations import Evaluator, check_needs
from vlmax.training.setup import device_context, prepare

PERPLEXITY = Perplexity(Texts(("abc",)), tiny_text.preprocess("llama"))
SHAPES = [ZeroShot(Numbers()), Retrieval(Numbers())]


def test_a_language_model_is_not_asked_for_images():
    check_needs(tiny_text.experiment("llama"))
    check_needs(tiny_text.experiment("llama", evaluations=(PERPLEXITY,)))
    for evaluation in SHAPES:
        with pytest.raises(InputError, match=r"'tiny_text': it needs a system that is Embeds .*LanguageModel is not;"):
            check_needs(tiny_text.experiment("llama", evaluations=(PERPLEXITY, evaluation)))


def test_two_encoders_are_not_asked_for_words():
    with pytest.raises(InputError, match=r"evaluation 'text' of 'tiny': it needs a system that is Scores.*CLIP is not"):
        check_needs(tiny.experiment(evaluations=(PERPLEXITY,)))


def test_prompts_need_a_preprocess_that_tokenizes():
    with pytest.raises(InputError, match=r"prompts are tokenized by data.preprocess, and TinyFeatures does not"):
        check_needs(tiny.experiment(evaluations=(SHAPES[0],)))

    class Tokenizing(tiny.TinyFeatures):
        def tokenize(self, texts):
            raise NotImplementedError

        def detokenize(self, tokens):
            raise NotImplementedError

    check_needs(tiny.with_data(tiny.experiment(evaluations=tuple(SHAPES)), preprocess=Tokenizing()))


def test_scores_are_kept_with_what_they_are_scores_of(tmp_path):
    experiment = tiny_text.experiment("llama", evaluations=(PERPLEXITY,))
    with device_context(experiment) as mesh:
        run = prepare(experiment, mesh)
        scores = Evaluator(run, tmp_path, print, lambda info: None)(run.init())
    told = json.loads((tmp_path / "evaluations" / "0" / "text.json").read_text())
    assert told["scores"] == scores and told["step"] == 0 and "outputs" not in told
    assert told["evaluation"]["batch_size"] == 64 and told["evaluation"]["source"]["texts"] == ["abc"]
