"""The peer's half of image_text_train.py: the same steps with transformers' modules, as a JSON line.

Encoders, BERT and Q-Former are transformers' (attention its sdpa where it has it), AdamW torch's fused one. What
transformers has not, the losses with twins, queues and drawn negatives, is written here as the papers' public code has
it; the Q-Former's queries are read once for contrast and captions, with a mask under which they do not see the text.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.torch_steps import parser_of, prepare, record

WORKLOADS = json.loads(Path(__file__).with_name("image_text_workloads.json").read_text())
DECODE, ENCODE = 1, 2


def drawn(similarity: torch.Tensor) -> torch.Tensor:
    """For every row a column that is not its own, with the softmax of its similarities."""
    weights = F.softmax(similarity.detach(), dim=1) + 1e-4
    return torch.multinomial(weights.fill_diagonal_(0), 1)[:, 0]


def begun(text: torch.Tensor, mark: int) -> torch.Tensor:
    """Texts with another first token."""
    return torch.cat([torch.full_like(text[:, :1], mark), text[:, 1:]], dim=1)


def matching(logits: torch.Tensor, rows: int) -> torch.Tensor:
    """Cross-entropy of pairs, the first `rows` of which match."""
    return F.cross_entropy(logits, (torch.arange(len(logits)) < rows).long())


def vision(workload: dict) -> nn.Module:
    """The image encoder: the same ViT for both."""
    from transformers import Blip2VisionConfig, Blip2VisionModel

    config = Blip2VisionConfig(
        image_size=workload["image"], patch_size=workload["patch"], hidden_size=workload["width"],
        num_hidden_layers=workload["depth"], num_attention_heads=workload["heads"],
        intermediate_size=workload["mlp"],
    )  # fmt: skip
    return Blip2VisionModel._from_config(config, attn_implementation="sdpa")


class BLIP(nn.Module):
    """BLIP's pretraining: ITC with twins and queues, ITM, LM; a decoder that shares all but self-attention."""

    def __init__(self, workload: dict) -> None:
        super().__init__()
        from transformers import BlipTextConfig
        from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

        text, embed = workload["text"], workload["embed"]
        config = BlipTextConfig(
            vocab_size=text["vocab"], hidden_size=text["width"], encoder_hidden_size=workload["width"],
            num_hidden_layers=text["depth"], num_attention_heads=text["heads"], intermediate_size=text["mlp"],
            max_position_embeddings=text["length"], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            label_smoothing=0.1, is_decoder=True, use_cache=False, bos_token_id=DECODE,
        )  # fmt: skip
        self.image = vision(workload)
        self.decoder = BlipTextLMHeadModel(config)
        encoder = copy.deepcopy(self.decoder.bert)
        for mine, theirs in zip(encoder.encoder.layer, self.decoder.bert.encoder.layer, strict=True):
            mine.crossattention, mine.intermediate = theirs.crossattention, theirs.intermediate
            mine.output = theirs.output
        encoder.embeddings = self.decoder.bert.embeddings
        self.text = encoder
        self.image_projection = nn.Linear(workload["width"], embed)
        self.text_projection = nn.Linear(text["width"], embed)
        self.head = nn.Linear(text["width"], 2)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        names = ("image", "text", "image_projection", "text_projection")
        self.twins = copy.deepcopy(nn.ModuleDict({name: getattr(self, name) for name in names}))
        for layer in self.twins["text"].encoder.layer:
            layer.crossattention = None
        self.twins.requires_grad_(False)
        own = dict(self.named_parameters(remove_duplicate=False))
        self.pairs = [(twin, own[name]) for name, twin in self.twins.named_parameters()]
        for side in ("image", "text"):
            queue = F.normalize(torch.randn(embed, workload["queue"]), dim=0)
            self.register_buffer(f"{side}_queue", queue)
        self.place = 0

    def features(self, parts, images, text):
        """Unit vectors of both sides, and the image's tokens."""
        tokens = parts["image"](pixel_values=images).last_hidden_state
        read = parts["text"](input_ids=text, attention_mask=torch.ones_like(text)).last_hidden_state
        image = F.normalize(parts["image_projection"](tokens[:, 0]), dim=-1)
        return image, F.normalize(parts["text_projection"](read[:, 0]), dim=-1), tokens

    @torch.no_grad()
    def slow(self, images, text):
        """The twins after their average, and what they make of the batch."""
        twins, own = zip(*self.pairs, strict=True)
        torch._foreach_lerp_(list(twins), list(own), 0.005)
        return self.features(self.twins, images, text)[:2]

    def forward(self, images, text, alpha=0.4):
        """The sum of the three losses."""
        rows = len(text)
        parts = {name: getattr(self, name) for name in ("image", "text", "image_projection", "text_projection")}
        image, words, tokens = self.features(parts, images, text)
        with torch.no_grad():
            slow_image, slow_text = self.slow(images, text)
            images_all = torch.cat([slow_image.T, self.image_queue], dim=1)
            texts_all = torch.cat([slow_text.T, self.text_queue], dim=1)
            own = torch.eye(rows, images_all.shape[1])
            to_text = alpha * F.softmax(slow_image @ texts_all / self.temperature, dim=1) + (1 - alpha) * own
            to_image = alpha * F.softmax(slow_text @ images_all / self.temperature, dim=1) + (1 - alpha) * own
        i2t, t2i = image @ texts_all / self.temperature, words @ images_all / self.temperature
        contrast = -(F.log_softmax(i2t, dim=1) * to_text).sum(1).mean() / 2
        contrast = contrast - (F.log_softmax(t2i, dim=1) * to_image).sum(1).mean() / 2

        encode = begun(text, ENCODE)
        other_text, other_image = drawn(i2t[:, :rows]), drawn(t2i[:, :rows])
        all_text = torch.cat([encode, encode, encode[other_text]])
        all_tokens = torch.cat([tokens, tokens[other_image], tokens])
        pairs = self.text(
            input_ids=all_text, attention_mask=torch.ones_like(all_text), encoder_hidden_states=all_tokens
        ).last_hidden_state
        written = self.decoder(
            input_ids=begun(text, DECODE), attention_mask=torch.ones_like(text), encoder_hidden_states=tokens,
            labels=begun(text, DECODE),
        ).loss  # fmt: skip
        with torch.no_grad():
            here = slice(self.place, self.place + rows)
            self.image_queue[:, here], self.text_queue[:, here] = slow_image.T, slow_text.T
            self.place = (self.place + rows) % self.image_queue.shape[1]
        return contrast + matching(self.head(pairs[:, 0]), rows) + written


class BLIP2(nn.Module):
    """BLIP-2's first stage on a frozen image encoder."""

    def __init__(self, workload: dict) -> None:
        super().__init__()
        from transformers import Blip2QFormerConfig
        from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2TextEmbeddings

        text, embed = workload["text"], workload["embed"]
        config = Blip2QFormerConfig(
            vocab_size=text["vocab"], hidden_size=text["width"], encoder_hidden_size=workload["width"],
            num_hidden_layers=text["depth"], num_attention_heads=text["heads"], intermediate_size=text["mlp"],
            max_position_embeddings=text["length"], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            cross_attention_frequency=2, use_qformer_text_input=True,
        )  # fmt: skip
        self.image = vision(workload).requires_grad_(False).eval()
        self.norm = nn.LayerNorm(workload["width"])
        self.queries = nn.Parameter(torch.randn(1, workload["queries"], text["width"]) * 0.02)
        self.embeddings = Blip2TextEmbeddings(config)
        self.qformer = Blip2QFormerModel._from_config(config, attn_implementation="sdpa")
        self.dense, self.dense_norm = nn.Linear(text["width"], text["width"]), nn.LayerNorm(text["width"])
        self.bias = nn.Parameter(torch.zeros(text["vocab"]))
        self.image_projection = nn.Linear(text["width"], embed)
        self.text_projection = nn.Linear(text["width"], embed)
        self.head = nn.Linear(text["width"], 2)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        count, length = workload["queries"], text["length"]
        seen = torch.zeros(count + length, count + length, dtype=torch.bool)
        seen[:, :count] = True
        seen[count:, count:] = torch.ones(length, length, dtype=torch.bool).tril()
        seen = torch.zeros(1, 1, *seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        self.register_buffer("writing", seen)

    def joint(self, text, tokens, mask=None):
        """Queries and text in one sequence."""
        x = self.embeddings(input_ids=text, query_embeds=self.queries.expand(len(text), -1, -1))
        return self.qformer(
            query_embeds=x, query_length=self.queries.shape[1], attention_mask=mask, encoder_hidden_states=tokens
        ).last_hidden_state

    def forward(self, images, text):
        """The sum of the three losses."""
        rows, count = len(text), self.queries.shape[1]
        with torch.no_grad():
            seen = self.image(pixel_values=images).last_hidden_state
        tokens = self.norm(seen)
        written = begun(text, DECODE)
        both = self.joint(written, tokens, self.writing.expand(rows, -1, -1, -1))
        found, words = both[:, :count], both[:, count:]
        read = self.qformer(query_embeds=self.embeddings(input_ids=text), query_length=0).last_hidden_state
        image = F.normalize(self.image_projection(found), dim=-1)
        label = F.normalize(self.text_projection(read[:, 0]), dim=-1)
        square = torch.einsum("iqe,te->itq", image, label).amax(-1) / self.temperature
        own = torch.arange(rows)
        contrast = F.cross_entropy(square, own, label_smoothing=0.1) + F.cross_entropy(
            square.T, own, label_smoothing=0.1
        )
        other_text, other_image = drawn(square), drawn(square.T)
        pairs = self.joint(torch.cat([text, text, text[other_text]]), torch.cat([tokens, tokens[other_image], tokens]))[
            :, :count
        ]
        logits = self.dense_norm(F.gelu(self.dense(words))) @ self.embeddings.word_embeddings.weight.T + self.bias
        writing = F.cross_entropy(logits[:, :-1].flatten(0, 1), text[:, 1:].flatten(), label_smoothing=0.1)
        return contrast / 2 + matching(self.head(pairs).mean(1), rows) + writing


def main() -> None:
    """Times the steps."""
    parser = parser_of("training steps of BLIP and BLIP-2 with transformers' modules", steps=6, warmup=2)
    parser.add_argument("--workload", choices=tuple(WORKLOADS), required=True)
    arguments = parser.parse_args()
    prepare()
    torch.manual_seed(0)
    workload = WORKLOADS[arguments.workload]
    model = (BLIP2 if "queries" in workload else BLIP)(workload)
    rows, size, text = workload["batch"], workload["image"], workload["text"]
    images, words = torch.randn(rows, 3, size, size), torch.randint(3, text["vocab"], (rows, text["length"]))
    found = record(model, lambda model: model(images, words), arguments)
    print(json.dumps({"workload": arguments.workload, "batch": rows, **found}))


if __name__ == "__main__":
    main()
