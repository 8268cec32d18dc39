"""Tiny language models on the text of the embedded `shapes` world: what later tiny systems attach to.

    python -m vlmax.train --config experiments/lm_shapes.py:llama
    python -m vlmax.train --config experiments/lm_shapes.py:opt
    python -m vlmax.train --config experiments/lm_shapes.py:t5

Hardware: two CPU cores. Time: a quarter of an hour of one of them. Scores, of scenes that training does not show:

- `text`: perplexity of captions, questions and conversations about other scenes of the same kind.
- `answers`: `exact`, the share of questions that are answered word by word, each after a description of its scene.
- `unseen`: the same for scenes with a combination of colour and shape that no text of the training holds.

| variant | perplexity of `text` (512 for a model that knows nothing) | `answers` | `unseen` |
|---|---|---|---|
| opt | 1.39 | 0.82 | 0.81 |
| t5, which reads a part of each text and writes the rest | 1.32 | 0.82 | 0.77 |

`llama` after 800 steps, without the documents that say a scene again: 1.38, 0.80, 0.80.

Nothing is downloaded: texts are made from their index, and the tokenizer is trained on them. `base` is `llama`.
"""

import dataclasses

from vlmax.data.pipeline import Data, Weighted
from vlmax.data.sources.shapes_documents import Form, ShapesText
from vlmax.data.texts import PackedPairs, PackedText
from vlmax.data.tokenizers import TrainedBpe
from vlmax.evaluation.perplexity import Perplexity
from vlmax.experiment import Checkpoints, Experiment, unknown_variant
from vlmax.models.decoders.llama import LLaMA
from vlmax.models.decoders.opt import OPT
from vlmax.models.decoders.t5 import T5
from vlmax.systems.language_model import Causal, LanguageModel, TextToText
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Cosine

VARIANTS = ("base", "llama", "opt", "t5")
VOCAB = 512
LENGTH = 256  # tokens of a row
TOKENIZER = TrainedBpe(ShapesText("train"), vocab_size=VOCAB)
FORMS: tuple[Form, ...] = ("caption", "captions", "captions", "question", "conversation")
SIZES = {"width": 128, "heads": 4, "vocab": VOCAB}


def get_config(variant: str = "base") -> Experiment:
    """The experiment of a variant."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    if variant == "t5":
        t5 = T5(**SIZES, depth=3, head_dim=32, mlp=352, context=LENGTH, unroll=3)
        text, preprocess = TextToText(t5, LENGTH, LENGTH), PackedPairs(TOKENIZER, LENGTH, LENGTH, documents=12)
    else:
        opt = OPT(**SIZES, depth=4, mlp=512, context=LENGTH, unroll=4)
        llama = LLaMA(**SIZES, depth=4, mlp=352, context=LENGTH, unroll=4)
        text = Causal(opt if variant == "opt" else llama, LENGTH)
        preprocess = PackedText(TOKENIZER, LENGTH, documents=7)
    answers = dataclasses.replace(preprocess, documents=1, learn="answer")
    return Experiment(
        name=f"lm_shapes_{'llama' if variant == 'base' else variant}",
        system=LanguageModel(text, chunk=2048, dtype="float32"),
        data=Data(sources=(Weighted(ShapesText("train", forms=FORMS)),), preprocess=preprocess, batch_size=16),
        optimizer=Optimizer(
            AdamW(b1=0.9, b2=0.95, weight_decay=0.1),
            Cosine(peak=2e-3, warmup_steps=50, end=2e-4),
            clip_norm=1.0,
        ),
        steps=800 if variant == "t5" else 1600,
        evaluations=(
            Perplexity(ShapesText("train", count=512, seed=1), dataclasses.replace(preprocess, documents=1)),
            Perplexity(ShapesText("train", count=512, seed=1, forms=("question",)), answers, name="answers"),
            Perplexity(ShapesText("test", count=512, forms=("question",)), answers, name="unseen"),
        ),
        checkpoints=Checkpoints(every_steps=200),
    )
