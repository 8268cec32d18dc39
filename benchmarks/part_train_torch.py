"""The peer's half of part_train.py: one run of transformers' model of the part, as a JSON line.

The models have the sizes of the workload and random weights; AdamW is torch's fused one, attention its sdpa.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.torch_steps import parser_of, prepare, record


def decoder(workload: dict, rows: int):
    """The language model, and its loss on random tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes, vision = workload["llm"], workload["vision"]
    config = LlamaConfig(
        hidden_size=sizes["width"], num_hidden_layers=sizes["depth"], num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"], intermediate_size=sizes["ffn"], vocab_size=sizes["vocab"],
        tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    image = (vision["image"] // vision["patch"]) ** 2
    tokens = torch.randint(0, sizes["vocab"], (rows, image + workload["text_tokens"]))
    labels = tokens.clone()
    labels[:, : image + workload["masked_text_tokens"]] = -100
    return model, lambda model: model(input_ids=tokens, labels=labels).loss


def encoder(workload: dict, rows: int):
    """The image encoder, and the mean square of its pooled output on random images."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = workload["vision"]
    config = CLIPVisionConfig(
        image_size=sizes["image"], patch_size=sizes["patch"], hidden_size=sizes["width"],
        num_hidden_layers=sizes["depth"], num_attention_heads=sizes["heads"], intermediate_size=sizes["ffn"],
        hidden_act=workload["activation"],
    )  # fmt: skip
    model = CLIPVisionModel._from_config(config, attn_implementation="sdpa")
    images = torch.randn(rows, 3, sizes["image"], sizes["image"])
    return model, lambda model: model(pixel_values=images).pooler_output.square().mean()


def main() -> None:
    """Times the steps."""
    parser = parser_of("transformers' training step of one part", steps=8, warmup=3)
    parser.add_argument("--part", choices=("decoder", "encoder"), required=True)
    parser.add_argument("--bench", type=Path, required=True, help="where workloads.json is")
    arguments = parser.parse_args()
    prepare()
    name = {"decoder": "llava-tiny", "encoder": "clip-vit-b16"}[arguments.part]
    workload = json.loads((arguments.bench / "workloads.json").read_text())[name]
    rows = workload["batch"]["cpu"]
    model, loss_of = (decoder if arguments.part == "decoder" else encoder)(workload, rows)
    print(json.dumps({"part": arguments.part, "batch": rows, **record(model.train(), loss_of, arguments)}))


if __name__ == "__main__":
    main()
