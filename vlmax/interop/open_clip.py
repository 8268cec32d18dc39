"""CLIP in OpenAI's own layout, which OpenCLIP keeps: ViTs and ResNets, queries, keys and values in one matrix.

OpenAI's files hold no configuration: the sizes are those of the tensors, heads are 64 wide, and the activation is
QuickGELU. OpenCLIP puts open_clip_config.json beside its weights, and only that says which activation they need.
"""

from __future__ import annotations

import math
from typing import Any

from vlmax.errors import InputError
from vlmax.interop.clip import patch_sizes, side, square
from vlmax.interop.family import Family, Json, cannot, field, only
from vlmax.interop.resnet import STAGES, batch_norm, batches_tracked, blocks, conv
from vlmax.interop.table import LeftOut, Row, linear, norm, thirds, under
from vlmax.interop.tensors import Tensors
from vlmax.models.encoders.resnet import ModifiedResNet, ResNet
from vlmax.models.encoders.text import TextEncoder
from vlmax.models.encoders.vit import ViT
from vlmax.models.layers.mlp import Activation
from vlmax.systems.clip import CLIP, Softmax

# D width, H heads, K head width, F feed-forward width, T positions, V vocabulary, E joint space, y x c of a patch.
LAYER = (
    *norm("attention_norm", "ln_1"),
    *thirds("kernel", "attn.in_proj_weight", "D H K = (3 H K) D"),
    *thirds("bias", "attn.in_proj_bias", "H K = (3 H K)"),
    *linear("attention/out", "attn.out_proj", "H K D = D (H K)", "D = D"),
    *norm("mlp_norm", "ln_2"),
    *linear("mlp/up", "mlp.c_fc", "D F = F D", "F = F"),
    *linear("mlp/down", "mlp.c_proj", "F D = D F", "D = D"),
)
VISION = (
    Row("patch_embedding/kernel", "conv1.weight", "(y x c) D = D c y x"),
    Row("class_token", "class_embedding", "D = D"),
    Row("positions/embedding", "positional_embedding", "T D = T D"),
    *norm("pre_norm", "ln_pre"),
    *under("transformer/layers/", "transformer.resblocks.{layer}.", LAYER),
    *norm("final_norm", "ln_post"),
)
TEXT = (
    Row("token_embedding/embedding", "token_embedding.weight", "V D = V D"),
    Row("positions/embedding", "positional_embedding", "T D = T D"),
    *under("transformer/layers/", "transformer.resblocks.{layer}.", LAYER),
    *norm("final_norm", "ln_final"),
)


def block(own: str, foreign: str, first: int) -> tuple[Row, ...]:
    """One block of a ResNet."""
    rows: tuple[Row, ...] = ()
    for i in (1, 2, 3):
        rows += conv(f"{own}/conv{i}", f"{foreign}.conv{i}", first=first)
        rows += batch_norm(f"{own}/norm{i}", f"{foreign}.bn{i}", first=first)
    if first == 0:
        rows += conv(f"{own}/shortcut_conv", f"{foreign}.downsample.0")
        rows += batch_norm(f"{own}/shortcut_norm", f"{foreign}.downsample.1")
    return rows


RESNET = (
    *(row for i in (1, 2, 3) for row in conv(f"stem_conv{i}", f"conv{i}")),
    *(row for i in (1, 2, 3) for row in batch_norm(f"stem_norm{i}", f"bn{i}")),
    *(row for i in range(STAGES) for row in blocks(i, block, f"layer{i + 1}.{{layer}}")),
    Row("pool/positions", "attnpool.positional_embedding", "T D = T D"),
    *linear("pool/query", "attnpool.q_proj", "D H K = (H K) D", "H K = (H K)"),
    *linear("pool/key", "attnpool.k_proj", "D H K = (H K) D", "H K = (H K)"),
    *linear("pool/value", "attnpool.v_proj", "D H K = (H K) D", "H K = (H K)"),
    *linear("pool/out", "attnpool.c_proj", "H K E = E (H K)", "E = E"),
)


def rows(config: CLIP) -> tuple[Row, ...]:
    """The table."""
    return (
        *under("image/", "visual.", VISION if isinstance(config.image, ViT) else RESNET),
        *under("text/", "", TEXT),
        Row("image_projection/kernel", "visual.proj", "D E = D E"),
        Row("text_projection/kernel", "text_projection", "D E = D E"),
        Row("objective/log_scale", "logit_scale", "="),
    )


def read(found: Json) -> CLIP:
    """Our configuration, of open_clip_config.json."""
    model = field(found, "model_cfg")
    vision, text = field(model, "vision_cfg"), field(model, "text_cfg")
    for part in (vision, text):
        for name in set(part) - set(SIZES):
            only(part, name, PLAIN.get(name, (None, False)), None)
    act: Activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    embed, layers, width = field(model, "embed_dim"), field(vision, "layers", 12), field(vision, "width", 768)
    image: ViT | ModifiedResNet
    if isinstance(layers, list):
        first, second, third, fourth = layers
        head = field(vision, "head_width", 64)
        depths = (first, second, third, fourth)
        image = ModifiedResNet(width, depths, width * 32 // head, embed, field(vision, "image_size", 224))
    else:
        image = ViT(
            width=width,
            depth=layers,
            heads=width // field(vision, "head_width", 64),
            mlp=int(width * field(vision, "mlp_ratio", 4.0)),
            patch=field(vision, "patch_size", 16),
            image=side(field(vision, "image_size", 224)),
            activation=act,
        )
    text_width = field(text, "width", 512)
    text_encoder = TextEncoder(
        width=text_width,
        depth=field(text, "layers", 12),
        heads=field(text, "heads", 8),
        mlp=int(text_width * field(text, "mlp_ratio", 4.0)),
        vocab=field(text, "vocab_size", 49_408),
        context=field(text, "context_length", 77),
        activation=act,
    )
    pixels = found.get("preprocess_cfg", {})
    normal: dict[str, Any] = {name: tuple(pixels[name]) for name in ("mean", "std") if name in pixels}
    return CLIP(image=image, text=text_encoder, embed=embed, image_projection=isinstance(image, ViT), **normal)


SIZES = (
    *("image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size"),
    *("context_length", "vocab_size", "heads", "patch_dropout", "output_tokens"),
)
PLAIN: dict[str, tuple[Any, ...]] = {
    "pos_embed_type": ("learnable",),
    "pool_type": ("tok", "argmax"),
    "proj_type": ("linear",),
    "pad_id": (0,),
    "eos_id": (2,),
}
"""Fields that say what OpenCLIP's models are without them; others must be off."""


def write(config: CLIP) -> dict[str, Any]:
    """open_clip_config.json."""
    text = config.text
    cannot(isinstance(config.objective, Softmax) and config.text_projection, "this CLIP", "open_clip")
    cannot(text.causal and text.pool == "highest" and text.head_width is None, "this text encoder", "open_clip")
    cannot(text.norm_epsilon == 1e-5, f"a norm_epsilon of {text.norm_epsilon}", "open_clip")
    cannot(text.activation in ("gelu", "quick_gelu"), f"the activation {text.activation}", "open_clip")
    return {
        "model_cfg": {
            "embed_dim": config.embed,
            "quick_gelu": text.activation == "quick_gelu",
            "vision_cfg": vision(config),
            "text_cfg": {
                "context_length": text.context,
                "vocab_size": text.vocab,
                "width": text.width,
                "heads": text.heads,
                "layers": text.depth,
                "mlp_ratio": ratio(text.mlp, text.width),
            },
        },
        "preprocess_cfg": {"mean": list(config.mean), "std": list(config.std)},
    }


def vision(config: CLIP) -> dict[str, Any]:
    """`vision_cfg`."""
    image = config.image
    cannot(not isinstance(image, ResNet), "a plain ResNet", "open_clip")
    if isinstance(image, ModifiedResNet):
        cannot(not config.image_projection, "a projection after a ResNet", "open_clip")
        head = image.width // image.heads
        layers = list(image.depths)
        return {
            "image_size": image.image,
            "layers": layers,
            "width": image.stem,
            "head_width": head,
            "patch_size": None,
        }
    assert isinstance(image, ViT)
    cannot(image.pool == "class" and image.positions == "learned", "an image encoder without class token", "open_clip")
    cannot(image.pre_norm and image.final_norm and config.image_projection, "this image encoder", "open_clip")
    cannot(not image.patch_bias and image.qkv_bias, "these biases of the image encoder", "open_clip")
    cannot(image.activation == config.text.activation, "two activations", "open_clip")
    cannot(image.norm_epsilon == 1e-5, f"a norm_epsilon of {image.norm_epsilon}", "open_clip")
    return {
        "image_size": square(image, "open_clip"),
        "layers": image.depth,
        "width": image.width,
        "head_width": image.width // image.heads,
        "mlp_ratio": ratio(image.mlp, image.width),
        "patch_size": image.patch,
    }


def ratio(mlp: int, width: int) -> float:
    """What gives the feed-forward width again when OpenCLIP multiplies and cuts off."""
    found = mlp / width
    return found if int(width * found) == mlp else math.nextafter(found, math.inf)


def described(tensors: Tensors) -> dict[str, Any]:
    """What open_clip_config.json would say of OpenAI's tensors (github.com/openai/CLIP, clip/model.py: build_model).

    Raises:
      InputError: they are not OpenAI's.
    """
    try:
        text_width = tensors["ln_final.weight"].shape[0]
        model = {
            "embed_dim": tensors["text_projection"].shape[1],
            "quick_gelu": True,
            "vision_cfg": described_vision(tensors),
            "text_cfg": {
                "context_length": tensors["positional_embedding"].shape[0],
                "vocab_size": tensors["token_embedding.weight"].shape[0],
                "width": text_width,
                "heads": text_width // 64,
                "layers": count(tensors, "transformer.resblocks."),
            },
        }
    except (KeyError, IndexError) as error:
        raise InputError(f"there is no tensor {error}, which OpenAI's CLIP has; it is another model") from None
    return {"model_cfg": model}


def described_vision(tensors: Tensors) -> dict[str, Any]:
    """`vision_cfg`."""
    if "visual.proj" in tensors:
        width, _, _, patch = tensors["visual.conv1.weight"].shape
        grid = math.isqrt(tensors["visual.positional_embedding"].shape[0] - 1)
        depth = count(tensors, "visual.transformer.resblocks.")
        return {"image_size": grid * patch, "layers": depth, "width": width, "patch_size": patch}
    grid = math.isqrt(tensors["visual.attnpool.positional_embedding"].shape[0] - 1)
    depths = [count(tensors, f"visual.layer{i + 1}.") for i in range(STAGES)]
    return {"image_size": grid * 32, "layers": depths, "width": tensors["visual.layer1.0.conv1.weight"].shape[0]}


def count(tensors: Tensors, prefix: str) -> int:
    """How many numbers follow the prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


LEFT_OUT = (
    LeftOut("input_resolution|context_length|vocab_size|attn_mask"),
    LeftOut(r".*\.num_batches_tracked"),
)
RENAMED = (
    (r"^module\.", ""),
    (r"^text\.(token_embedding|positional_embedding|transformer|ln_final|text_projection|attn_mask)", r"\1"),
)
OPENAI_MARK = "input_resolution"
"""A tensor that only OpenAI's files hold."""

FAMILY = Family(
    name="open_clip",
    model_types=(),
    config=CLIP,
    read=read,
    write=write,
    rows=rows,
    sizes=patch_sizes,
    renamed=RENAMED,
    left_out=LEFT_OUT,
    written=batches_tracked,
    files=("open_clip_config.json", *Family.files[1:]),
)
