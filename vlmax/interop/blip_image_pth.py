"""The image encoders in the files of BLIP's and LAVIS's authors: BLIP's ViT, EVA, and OpenAI's CLIP ViT.

The sizes are those of the tensors. Heads are 64 wide, those of EVA 88.
"""

from __future__ import annotations

import math

from vlmax.interop import open_clip
from vlmax.interop.table import Row, linear, norm, thirds, under
from vlmax.interop.tensors import Tensors
from vlmax.models.encoders.vit import ViT, blip_vit_b16, eva_vit_g14, penultimate_vit_l14

PREFIX = "visual_encoder."
# D width, H heads, K head width, F feed-forward width, T positions, y x c of a patch.
LAYER = (
    *norm("attention_norm", "norm1"),
    *thirds("kernel", "attn.qkv.weight", "D H K = (3 H K) D"),
    *linear("attention/out", "attn.proj", "H K D = D (H K)", "D = D"),
    *norm("mlp_norm", "norm2"),
    *linear("mlp/up", "mlp.fc1", "D F = F D", "F = F"),
    *linear("mlp/down", "mlp.fc2", "F D = D F", "D = D"),
)
BIASES = thirds("bias", "attn.qkv.bias", "H K = (3 H K)")
EVA_BIASES = (
    Row("attention/query/bias", "attn.q_bias", "H K = (H K)"),
    Row("attention/value/bias", "attn.v_bias", "H K = (H K)"),
)
EMBEDDINGS = (
    *linear("patch_embedding", "patch_embed.proj", "(y x c) D = D c y x", "D = D"),
    Row("class_token", "cls_token", "D = 1 1 D"),
    Row("positions/embedding", "pos_embed", "T D = 1 T D"),
)


def _rows(biases: tuple[Row, ...]) -> tuple[Row, ...]:
    layers = under("transformer/layers/", "blocks.{layer}.", (*LAYER, *biases))
    return under("image/", PREFIX, (*EMBEDDINGS, *layers, *norm("final_norm", "norm")))


BLIP = _rows(BIASES)
EVA = _rows(EVA_BIASES)
"""Its keys have no bias; ours is zero."""
CLIP = under("image/", PREFIX, open_clip.VISION)


def blip(tensors: Tensors) -> ViT:
    """BLIP's encoder; raises KeyError where a tensor is missing."""
    return blip_vit_b16(**_sizes(tensors, head=64))


def frozen(tensors: Tensors, width: int) -> ViT:
    """BLIP-2's encoder, whose tokens are so wide; where it is not in the file, that which its authors have.

    Raises:
      KeyError: a tensor is missing, or they have no such encoder.
    """
    if f"{PREFIX}cls_token" in tensors:
        return eva_vit_g14(**_sizes(tensors, head=88))
    if f"{PREFIX}class_embedding" in tensors:
        patch = tensors[f"{PREFIX}conv1.weight"].shape[-1]
        grid = math.isqrt(tensors[f"{PREFIX}positional_embedding"].shape[0] - 1)
        depth = open_clip.count(tensors, f"{PREFIX}transformer.resblocks.")
        return penultimate_vit_l14(width=width, depth=depth, heads=width // 64, patch=patch, image=grid * patch)
    known = {image.width: image for image in (eva_vit_g14(), penultimate_vit_l14())}
    return known[width]


def _sizes(tensors: Tensors, head: int) -> dict[str, int]:
    """The sizes of the encoder, with heads so wide."""
    width, _, _, patch = tensors[f"{PREFIX}patch_embed.proj.weight"].shape
    return {
        "width": width,
        "depth": open_clip.count(tensors, f"{PREFIX}blocks."),
        "heads": width // head,
        "mlp": tensors[f"{PREFIX}blocks.0.mlp.fc1.weight"].shape[0],
        "patch": patch,
        "image": math.isqrt(tensors[f"{PREFIX}pos_embed"].shape[1] - 1) * patch,
    }
