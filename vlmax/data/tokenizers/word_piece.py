"""BERT's WordPiece, from vocab.txt."""

from __future__ import annotations

import dataclasses

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from vlmax.data.tokenizers.tokenizer import FastTokenizer, Tokenizer, add_tokens, mark, read, wrong_file

MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclasses.dataclass(frozen=True)
class WordPiece:
    """WordPiece (Devlin et al. 2018, appendix A): words, then the longest pieces of each; 30,522 ids for bert-base.

    The text is cleaned, and lower-cased and stripped of accents where `lower` says so; `[CLS]` begins and `[SEP]` ends
    a text, `[PAD]` fills. The marks and added tokens stand for themselves where they are written.

    Attributes:
      path: `vocab.txt`, a token a line; its number is its id.
      lower: for the uncased models.
      added: tokens that the vocabulary does not have, with the next free ids: BLIP's ("[DEC]", "[ENC]").
    """

    path: str
    lower: bool = True
    added: tuple[str, ...] = ()

    def open(self) -> Tokenizer:
        """The tokenizer; raises `InputError` where the file is missing or is not BERT's vocabulary."""
        try:
            lines = read(self.path, "WordPiece.path").decode("utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise wrong_file(self.path, "WordPiece.path", "a vocab.txt", error) from None
        vocabulary = {token: i for i, token in enumerate(lines)}
        missing = [token for token in MARKS if token not in vocabulary]
        if missing or len(vocabulary) != len(lines):
            reason = f"it has no {', '.join(missing)}" if missing else "a token stands on two lines"
            raise wrong_file(self.path, "WordPiece.path", "a vocab.txt of BERT's", reason)
        fast = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        fast.normalizer = normalizers.BertNormalizer(lowercase=self.lower)
        fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        fast.decoder = decoders.WordPiece(prefix="##")
        fast.add_special_tokens(list(MARKS))
        size = add_tokens(fast, self.added, "WordPiece.added")
        pad, bos, eos = (mark(fast, token, self.path, "WordPiece.path") for token in ("[PAD]", "[CLS]", "[SEP]"))
        return FastTokenizer(fast, size, pad, bos, eos, (bos,))
