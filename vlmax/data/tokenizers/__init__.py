"""Text to token ids. A frozen configuration names the files; `open()` reads them and gives the tokenizer.

`encode` gives the ids of the text alone; `to_fixed` puts the marks of begin and end round them, cuts and pads. What a
prompt begins with is in `begin`, and what ends a model's text in `ends`: models differ in both.
A tokenizer is picklable, so that it is opened once and travels into worker processes.

| family | configuration |
|---|---|
| CLIP | `ClipBpe` |
| BERT, BLIP, the Q-Former | `WordPiece` |
| GPT-2, OPT | `ByteBpe`, as `gpt2(...)` and `opt(...)` make it |
| T5, SigLIP, LLaMA, Vicuna | `SentencePiece` |
| LLaMA 3, Qwen2, whatever has a tokenizer.json | `TokenizerJson` |
| none yet | `TrainedBpe` |

`WithTokens` adds tokens to any of them but SentencePiece's.
"""

from vlmax.data.tokenizers.added import WithTokens
from vlmax.data.tokenizers.byte_bpe import ByteBpe, gpt2, opt
from vlmax.data.tokenizers.clip import ClipBpe, clip_clean
from vlmax.data.tokenizers.json_file import TokenizerJson
from vlmax.data.tokenizers.sentence_piece import SentencePiece
from vlmax.data.tokenizers.tokenizer import FastTokenizer, Tokenizer, TokenizerConfig, to_fixed
from vlmax.data.tokenizers.trained import TrainedBpe, train_bpe
from vlmax.data.tokenizers.word_piece import WordPiece

__all__ = [
    "ByteBpe",
    "ClipBpe",
    "FastTokenizer",
    "SentencePiece",
    "Tokenizer",
    "TokenizerConfig",
    "TokenizerJson",
    "TrainedBpe",
    "WithTokens",
    "WordPiece",
    "clip_clean",
    "gpt2",
    "opt",
    "to_fixed",
    "train_bpe",
]
