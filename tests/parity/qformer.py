"""transformers' Q-Former beside ours: its weights under our paths, and the largest difference of what both give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import torch

from tests.parity.bert import layer as bert_layer
from tests.parity.huggingface import dense, norm
from tests.parity.torch_imports import transformers
from vlmax.models.connectors.qformer import QFormer


def reference(seed: int, queries: int = 5, image_tokens: int = 7, length: int = 6, **fields: Any) -> dict[str, Any]:
    """A random `Blip2ForImageTextRetrieval`'s Q-Former: weights, inputs, and what its three uses give."""
    library = transformers()
    torch.manual_seed(seed)
    sizes = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 40}
    sizes |= {"vocab_size": 50, "max_position_embeddings": 20, "encoder_hidden_size": 20, **fields}
    config = library.Blip2QFormerConfig(**sizes, use_qformer_text_input=True)
    former = library.models.blip_2.modeling_blip_2.Blip2QFormerModel(config).eval()
    embeddings = library.models.blip_2.modeling_blip_2.Blip2TextEmbeddings(config).eval()
    query_tokens = torch.randn(1, queries, config.hidden_size)
    with torch.no_grad():
        for module in (former, embeddings):
            for name, value in module.named_parameters():
                plain = value.ndim < 2 or "embeddings" in name
                value.normal_(std=0.5 if plain else 1.5 * value.shape[1] ** -0.5)
                if "norm" in name.lower() and name.endswith("weight"):
                    value.add_(1.0)
        image = torch.randn(3, image_tokens, config.encoder_hidden_size)
        text = torch.randint(0, config.vocab_size, (3, length))
        real = (torch.arange(length)[None] < length - torch.arange(3)[:, None]).long()
        asked = query_tokens.expand(3, -1, -1)
        joint = torch.cat([torch.ones(3, queries, dtype=torch.long), real], dim=1)
        alone = former(query_embeds=asked, encoder_hidden_states=image).last_hidden_state
        together = former(
            query_embeds=embeddings(input_ids=text, query_embeds=asked.clone()),
            query_length=queries,
            attention_mask=joint,
            encoder_hidden_states=image,
        ).last_hidden_state
        read = former(query_embeds=embeddings(input_ids=text), query_length=0, attention_mask=real).last_hidden_state
    weights = {f"qformer.{name}": value for name, value in former.named_parameters()}
    weights |= {f"embeddings.{name}": value for name, value in embeddings.named_parameters()}
    weights["query_tokens"] = query_tokens
    return {
        "config": config.to_dict(),
        "weights": {name: value.detach().numpy().copy() for name, value in weights.items()},
        "inputs": (image.numpy(), text.numpy(), real.numpy().astype(np.int32)),
        "outputs": {"alone": alone.numpy(), "together": together.numpy(), "read": read.numpy()},
    }


def config(found: Mapping[str, Any]) -> QFormer:
    """Ours of theirs."""
    theirs = found["config"]
    return QFormer(
        width=theirs["hidden_size"],
        depth=theirs["num_hidden_layers"],
        heads=theirs["num_attention_heads"],
        mlp=theirs["intermediate_size"],
        queries=found["weights"]["query_tokens"].shape[1],
        cross_width=theirs["encoder_hidden_size"],
        cross_every=theirs["cross_attention_frequency"],
        cross_norm=None,  # theirs is the image encoder's last norm
        predicts=False,
        vocab=theirs["vocab_size"],
        context=theirs["max_position_embeddings"],
        norm_epsilon=theirs["layer_norm_eps"],
    )


def params(found: Mapping[str, Any], ours: QFormer) -> dict[str, Any]:
    """Parameters of `QFormerModule`; every foreign weight is used."""
    weights = found["weights"]
    own, cross = [], []
    for i in range(ours.depth):
        prefix = f"qformer.encoder.layer.{i}"
        # Attention is as in BERT, but that "self" is called "attention".
        names = {f"{prefix}.attention.self.{p}.{k}": f"{prefix}.attention.attention.{p}.{k}"
                 for p in ("query", "key", "value") for k in ("weight", "bias")}  # fmt: skip
        renamed = {new: weights[old] for new, old in names.items()}
        renamed |= {n: weights[n] for n in weights if n.startswith(f"{prefix}.") and "attention.attention" not in n}
        tree = bert_layer(renamed, prefix, _Plain(ours))
        tree["query_mlp"] = {"up": dense(weights, f"{prefix}.intermediate_query.dense"),
                             "down": dense(weights, f"{prefix}.output_query.dense")}  # fmt: skip
        tree["query_mlp_norm"] = norm(weights, f"{prefix}.output_query.LayerNorm")
        own.append(tree)
        if i % ours.cross_every == 0:
            crossing = {n.replace(f"{prefix}.crossattention.attention.", f"{prefix}.crossattention.self."): weights[n]
                        for n in weights if n.startswith(f"{prefix}.crossattention")}  # fmt: skip
            other = bert_layer({**renamed, **crossing}, prefix, _Plain(ours, cross_width=ours.cross_width))
            cross.append({name: other[name] for name in ("cross_attention", "cross_attention_norm")})
    tree = {
        "query_tokens": weights["query_tokens"][0],
        "vocabulary": {"embedding": weights["embeddings.word_embeddings.weight"]},
        "positions": {"embedding": weights["embeddings.position_embeddings.weight"]},
        "embedding_norm": norm(weights, "qformer.layernorm"),
        "transformer": {
            "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *own),
            "cross_layers": jax.tree.map(lambda *leaves: np.stack(leaves), *cross),
        },
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == sum(value.size for value in weights.values())
    return {"params": tree}


class _Plain:
    """What `bert_layer` reads of a configuration."""

    def __init__(self, config: QFormer, cross_width: int | None = None):
        self.heads, self.width, self.cross_width = config.heads, config.width, cross_width


def difference(found: Mapping[str, Any]) -> dict[str, float]:
    """The largest difference in each use, over its largest value; padding is left out."""
    ours = config(found)
    module, tree = ours.build(), params(found, ours)
    image, text, real = found["inputs"]
    fresh = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), image))
    assert jax.tree.map(np.shape, tree) == jax.tree.map(np.shape, fresh)
    joint = module.apply(tree, image, text, real)
    mine = {
        "alone": module.apply(tree, image).queries,
        "together": np.concatenate([joint.queries, joint.text], axis=1),
        "read": module.apply(tree, text, real, method="read"),
    }
    seen = {"alone": np.ones(mine["alone"].shape[:2], bool), "read": real == 1}
    seen["together"] = np.concatenate([seen["alone"], seen["read"]], axis=1)
    theirs = found["outputs"]
    return {
        name: float(np.abs(mine[name] - theirs[name])[seen[name]].max() / np.abs(theirs[name][seen[name]]).max())
        for name in mine
    }
