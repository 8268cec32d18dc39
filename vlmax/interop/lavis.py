"""BLIP-2 and InstructBLIP in LAVIS's files (`.pth`): read, not written.

A file holds what was trained: always the Q-Former and what follows it, the image encoder only after a fine-tuning of
it, never the language model. What it lacks is named; experiments take that from where it is (`Pretrained`). There is no
configuration: the sizes are those of the tensors, and heads are 64 wide.
"""

from __future__ import annotations

from typing import Any

from vlmax.errors import InputError
from vlmax.interop import blip2, blip2_matching, blip_image_pth, open_clip, qformer
from vlmax.interop.family import Family
from vlmax.interop.table import Absent, LeftOut, Row, linear
from vlmax.interop.tensors import Tensors
from vlmax.models.connectors.qformer import QFormer
from vlmax.models.decoders.llama import vicuna_7b, vicuna_13b
from vlmax.models.decoders.opt import opt_2_7b, opt_6_7b
from vlmax.models.decoders.t5 import flan_t5_xl, flan_t5_xxl
from vlmax.systems.blip2 import BLIP2
from vlmax.systems.image_prefix import ImagePrefix
from vlmax.systems.language_model import Causal, TextToText

MARK = "Qformer."
"""The beginning of names that only these files have."""
LAYERS, EMBEDDINGS = "Qformer.bert.encoder.layer", "Qformer.bert.embeddings"
NAMES = qformer.Names(
    layers=LAYERS,
    attention="self",
    words=EMBEDDINGS,
    embedding_norm=f"{EMBEDDINGS}.LayerNorm",
    context_norm="ln_vision",
    head="Qformer.cls.predictions",
)
LANGUAGE: dict[str, tuple[Causal | TextToText, ...]] = {
    "opt_proj": (Causal(opt_2_7b(), 32), Causal(opt_6_7b(), 32)),
    "t5_proj": (
        TextToText(flan_t5_xl(activation="gelu"), 32, 32),
        TextToText(flan_t5_xxl(activation="gelu"), 32, 32),
    ),
    "llm_proj": (Causal(vicuna_7b(), 128), Causal(vicuna_13b(), 128)),
}
"""The projection's name -> the language models that LAVIS has behind it."""


def described(tensors: Tensors) -> BLIP2 | ImagePrefix:
    """The system whose tensors these are, with the names of the file.

    Raises:
      InputError: they are not LAVIS's, or of a model that vlmax does not have.
    """
    try:
        projection = next((name for name in LANGUAGE if f"{name}.weight" in tensors), None)
        former = _former(tensors)
        image = blip_image_pth.frozen(tensors, former.cross_width)
        if projection is None:
            return _first_stage(tensors, image, former)
        text = _language(projection, tensors[f"{projection}.weight"].shape[0])
        return ImagePrefix(image, text, former, instruction=min(128, former.context) if former.text else None)
    except (KeyError, IndexError) as error:
        raise InputError(f"there is no {error}, which LAVIS's BLIP-2 has; it is another model") from None


def _first_stage(tensors: Tensors, image: Any, former: QFormer) -> BLIP2:
    decode = BLIP2.decode if former.vocab > BLIP2.decode else former.vocab - 1
    embed = tensors["vision_proj.weight"].shape[0]
    return BLIP2(image, former, embed=embed, length=min(BLIP2.length, former.context), decode=decode)


def _language(projection: str, width: int) -> Causal | TextToText:
    known = {text.decoder.embed_width: text for text in LANGUAGE[projection]}
    if width not in known:
        raise InputError(
            f"its {projection} gives vectors {width} wide, and the language models behind that name are "
            f"{' or '.join(map(str, known))} wide; it is another model"
        )
    return known[width]


def _former(tensors: Tensors) -> QFormer:
    _, queries, width = tensors["query_tokens"].shape
    depth = open_clip.count(tensors, f"{LAYERS}.")
    crossing = [name for name in tensors if name.endswith(".crossattention.self.key.weight")]
    writes = any(name.startswith("Qformer.cls.") for name in tensors)
    first = "vision_proj.weight" in tensors
    reads = first or f"{EMBEDDINGS}.word_embeddings.weight" in tensors
    words, places = "word_embeddings", "position_embeddings"
    sizes = {"vocab": words, "context": places} if reads else {}
    tables: dict[str, Any] = {name: tensors[f"{EMBEDDINGS}.{table}.weight"].shape[0] for name, table in sizes.items()}
    return QFormer(
        width=width,
        depth=depth,
        heads=width // 64,
        mlp=tensors[f"{LAYERS}.0.intermediate_query.dense.weight"].shape[0],
        queries=queries,
        cross_width=tensors[crossing[0]].shape[1],
        cross_every=depth // len(crossing),
        text=reads,
        predicts=first or writes,
        **tables,
    )


def rows(config: BLIP2 | ImagePrefix) -> tuple[Row, ...]:
    """The table."""
    image = blip_image_pth.CLIP if config.image.pre_norm else blip_image_pth.EVA  # type: ignore[union-attr]
    if isinstance(config, BLIP2):
        heads = (
            *linear("image_projection", "vision_proj", "D E = E D", "E = E"),
            *linear("text_projection", "text_proj", "D E = E D", "E = E"),
            *linear("matching", "itm_head", "D P = P D", "P = P"),
            Row("objective/temperature", "temp", "="),
        )
        return (*image, *qformer.rows(config.qformer, "qformer/", NAMES), *heads)
    name = next(name for name, texts in LANGUAGE.items() if config.text in texts)
    assert config.connector is not None
    former = qformer.rows(config.connector, "connector/", NAMES)
    return (*image, *former, *linear("projection/layer_0", name, "Q D = D Q", "D = D"))


def sizes(config: BLIP2 | ImagePrefix) -> dict[str, int]:
    """The letters of a patch and of the vocabularies."""
    return (blip2_matching if isinstance(config, BLIP2) else blip2).sizes(config)  # type: ignore[arg-type]


def write(config: Any) -> dict[str, Any]:
    """None; raises InputError."""
    raise InputError("writing a lavis checkpoint: vlmax reads that layout and does not write it; take huggingface")


FAMILY = Family(
    name="lavis",
    model_types=(),
    config=ImagePrefix,
    read=lambda found: found,
    write=write,
    rows=rows,
    sizes=sizes,
    renamed=((r"^module\.", ""),),
    left_out=(
        LeftOut(r"Qformer\.bert\.embeddings\.position_ids"),
        LeftOut(r"visual_encoder\.(ln_post\..*|proj)", "BLIP-2 leaves out the encoder's last norm and projection"),
    ),
    absent=(
        Absent("image/.*", "the image encoder, frozen (image)", begins=False),
        Absent("text/.*", "the language model, frozen (text)", begins=False),
        Absent("image/transformer/layers/attention/key/bias"),
        qformer.HEAD,
    ),
    same={
        "Qformer.cls.predictions.decoder.weight": f"{EMBEDDINGS}.word_embeddings.weight",
        "Qformer.cls.predictions.decoder.bias": "Qformer.cls.predictions.bias",
    },
)
