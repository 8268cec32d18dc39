r"""BLIP-2 fine-tuned on VQAv2 (Li et al. 2023, section 4.3): `:opt2_7b`, `:opt6_7b`, `:flant5xl` and `:tiny`.

    python -m vlmax.train --config experiments/blip2_vqa.py:opt2_7b
    python -m vlmax.train --config experiments/blip2_vqa.py:tiny

Image encoder, Q-Former and projection train; the Q-Former also reads the prompt with the question, and the frozen
language model goes on from it, "Question: {} Answer:". Numbers are the paper's (table 8): 5 epochs in batches of 128,
learning rate 1e-5 after 1,000 steps of warm-up, betas 0.9 and 0.999, decay 0.05, pictures of 490 pixels, 5 beams,
layer-wise decay of the encoder's rate 0.95 (OPT-6.7B: 0.9). There is no public code of it. As in BLIP, VQAv2's train
and val are joined by Visual Genome's questions; an epoch is all of them, and the cosine ends at 0. The branch by which
the Q-Former reads the question is the first stage's, for the second stage has none.

It reads the checkpoints of both stages, `data/blip2-opt-2.7b` for the image encoder in full precision, the language
model's folder, `data/vqa` with VQAv2's files, COCO's pictures in `data/coco`, and Visual Genome in `data/vg`.

VQAv2 test-dev and test-std, as its server scores them (paper, table 4): opt2_7b (base) 81.59 and 81.74, opt6_7b 82.19
and 82.30, flant5xl 81.55 and 81.66. The evaluation keeps the answers to the questions of test-dev in the server's form.

`:tiny` is the same code on `shapes`, from the runs of `clip_shapes.py`, `blip2_stage1.py:tiny` and
`blip2_stage2_opt.py:tiny`; its score is the share of questions that are answered exactly.
"""

from vlmax.data.image_prompts import AnswerTo, ImagePair, ImagePrompt, Instruction
from vlmax.data.images import ImageTransform, RandomResizedCrop, Squash
from vlmax.data.pipeline import Data, Weighted
from vlmax.data.sources.shapes import Shapes
from vlmax.data.sources.shapes_documents import ShapesText
from vlmax.data.sources.shapes_questions import ShapesQuestions
from vlmax.data.sources.visual_genome import VisualGenomeQuestions
from vlmax.data.sources.vqa import VQA
from vlmax.data.texts import PackedPairs
from vlmax.data.tokenizers import SentencePiece, TrainedBpe, WithTokens, WordPiece, opt
from vlmax.decoding.settings import Generation
from vlmax.evaluation.prompting import Prompting
from vlmax.evaluation.question_answering import InOwnWords, QuestionAnswering
from vlmax.evaluation.scores.vqa import ExactMatch
from vlmax.experiment import Checkpoints, Experiment, unknown_variant
from vlmax.interop.pretrained import Pretrained
from vlmax.models.connectors.qformer import ALL_BUT_TEXT, TEXT_READING, TEXT_WRITING, QFormer
from vlmax.models.decoders.opt import OPT, opt_2_7b, opt_6_7b
from vlmax.models.decoders.t5 import flan_t5_xl
from vlmax.models.encoders.resnet import ResNet
from vlmax.models.encoders.vit import eva_vit_g14
from vlmax.systems.image_prefix import ImagePrefix
from vlmax.systems.language_model import Causal, TextToText
from vlmax.training.groups import LayerDecay
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Cosine

VARIANTS = ("base", "opt2_7b", "opt6_7b", "flant5xl", "tiny")
BATCH, EPOCHS, PIXELS, PROMPT = 128, 5, 490, "Question: {} Answer:"
QUESTIONS = {"vqa": 443_757 + 214_354, "genome": 1_445_322}
STEM = r"image/(class_token|patch_embedding/.*|positions/.*)"
FOLDER, PICTURES = "data/vqa", ("data/coco",)


def get_config(variant: str = "base") -> Experiment:
    """The experiment of a variant; `base` is `opt2_7b`."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    if variant == "tiny":
        return tiny()
    model = "opt2_7b" if variant == "base" else variant
    bert = WordPiece("data/bert-base-uncased/vocab.txt", added=("[DEC]",))
    image = ImageTransform(RandomResizedCrop(PIXELS, scale=(0.5, 1.0)), flip=0.5)
    asks, asked = AnswerTo(PROMPT), Instruction(bert, 32)
    if model == "flant5xl":
        folder = "data/flan-t5-xl"
        tokenizer = SentencePiece(f"{folder}/spiece.model", extra_ids=100)
        text, put = TextToText(flan_t5_xl(), 48, 16), Prompting(tokenizer, closed=True)
        preprocess = ImagePair(image, PackedPairs(tokenizer, 48, 16, learn="answer"), asks, asked)
    else:
        folder = f"data/opt-{model[3:].replace('_', '.')}"
        tokenizer = opt(f"{folder}/vocab.json", f"{folder}/merges.txt")
        text, put = Causal(opt_6_7b() if model == "opt6_7b" else opt_2_7b(), 64), Prompting(tokenizer, end=("\n",))
        preprocess = ImagePrompt(image, tokenizer, length=64, asks=asks, end="\n", instruction=asked)
    train = VQA(
        tuple(f"{FOLDER}/v2_OpenEnded_mscoco_{split}2014_questions.json" for split in ("train", "val")),
        tuple(f"{FOLDER}/v2_mscoco_{split}2014_annotations.json" for split in ("train", "val")),
        PICTURES,
    )
    genome = VisualGenomeQuestions("data/vg/question_answers.json", ("data/vg/VG_100K", "data/vg/VG_100K_2"))
    return Experiment(
        name=f"blip2_vqa_{model}",
        system=ImagePrefix(
            image=eva_vit_g14(image=PIXELS, remat="full"),
            text=text,
            connector=QFormer(vocab_multiple=64, predicts=False, dropout=0.1),
            lock=("text",),
            instruction=32,
        ),
        data=Data(
            sources=(Weighted(train, QUESTIONS["vqa"]), Weighted(genome, QUESTIONS["genome"])),
            preprocess=preprocess,
            batch_size=BATCH,
            workers=16,
            threads=4,
        ),
        optimizer=Optimizer(
            AdamW(b1=0.9, b2=0.999, weight_decay=0.05),
            Cosine(peak=1e-5, warmup_steps=1000),
            layer_decay=(LayerDecay(r"image/transformer/layers/.*", STEM, 0.9 if model == "opt6_7b" else 0.95),),
        ),
        steps=EPOCHS * sum(QUESTIONS.values()) // BATCH,
        init=(
            Pretrained("data/blip2-opt-2.7b", "image", take="image", resize=("positions/embedding",)),
            *connector(f"runs/blip2_stage2_{model}", "runs/blip2_stage1_vitg"),
            Pretrained(folder, "text"),
        ),
        evaluation_image=ImageTransform(Squash(PIXELS)),
        evaluations=(
            QuestionAnswering(
                VQA((f"{FOLDER}/v2_OpenEnded_mscoco_test-dev2015_questions.json",), (), PICTURES, name="test-dev"),
                put,
                prompt=PROMPT,
                instruction=asked,
                answering=InOwnWords(Generation(max_new_tokens=10, beams=5, length_penalty=-1.0)),
                scores=(),
            ),
        ),
        checkpoints=Checkpoints(every_steps=500),
    )


def connector(stage_2: str, stage_1: str) -> tuple[Pretrained, ...]:
    """The second stage's Q-Former and projection, and the branch that reads texts from the first."""
    unread = (ALL_BUT_TEXT, *TEXT_WRITING)
    return (
        Pretrained(stage_2, "connector", take="connector", fresh=TEXT_READING),
        Pretrained(stage_2, "projection", take="projection"),
        Pretrained(stage_1, "connector", take="qformer", fresh=(ALL_BUT_TEXT,), leave=unread),
    )


def tiny(size: int = 48) -> Experiment:
    """The same code on `shapes`."""
    image, scenes = ImageTransform(Squash(size)), Shapes("train", size=size, kinds=("single", "group"))
    tokenizer, prompt = TrainedBpe(ShapesText("train"), vocab_size=512), "question: {} answer:"
    asked = Instruction(WithTokens(TrainedBpe(scenes, vocab_size=512), ("[DEC]",)), 20)  # the first stage's tokens
    encoder = ResNet(stem=16, depths=(1, 1, 1, 1), image=size)
    run = "runs/blip2_stage2_opt_tiny"
    return Experiment(
        name="blip2_vqa_tiny",
        system=ImagePrefix(
            image=encoder,
            text=Causal(OPT(width=128, heads=4, vocab=512, depth=4, mlp=512, context=256, unroll=4), 32),
            connector=QFormer(
                width=128,
                depth=4,
                heads=4,
                mlp=256,
                queries=8,
                cross_width=encoder.width,
                predicts=False,
                vocab=513,
                context=20,
                unroll=4,
            ),
            lock=("text",),
            instruction=20,
            instruction_pad=509,
            chunk=4096,
            dtype="float32",
        ),
        data=Data(
            sources=(Weighted(ShapesQuestions(scenes)),),
            preprocess=ImagePrompt(image, tokenizer, length=32, asks=AnswerTo(prompt), instruction=asked),
            batch_size=64,
        ),
        optimizer=Optimizer(AdamW(weight_decay=0.05), Cosine(peak=3e-4, warmup_steps=20), clip_norm=1.0),
        steps=400,
        init=(
            Pretrained("runs/clip_shapes", "image", take="image"),
            *connector(run, "runs/blip2_stage1_tiny"),
            Pretrained(run, "text", take="text"),
        ),
        evaluation_image=image,
        evaluations=(
            QuestionAnswering(
                ShapesQuestions(Shapes("test", count=256, size=size, kinds=("single", "group"))),
                Prompting(tokenizer),
                prompt=prompt,
                instruction=asked,
                answering=InOwnWords(Generation(max_new_tokens=8)),
                scores=(ExactMatch(),),
            ),
        ),
        checkpoints=Checkpoints(every_steps=100),
    )
