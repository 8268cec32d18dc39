"""Any tokenizer with further tokens that stand for themselves."""

from __future__ import annotations

import dataclasses

from vlmax.data.tokenizers.tokenizer import FastTokenizer, Tokenizer, TokenizerConfig, add_tokens
from vlmax.errors import InputError


@dataclasses.dataclass(frozen=True)
class WithTokens:
    """A tokenizer whose vocabulary goes on with the next free ids, as BLIP's with ("[DEC]", "[ENC]").

    Attributes:
      tokenizer: what is added to.
      added: the tokens, in the order of their ids; one that is there already keeps its own.
    """

    tokenizer: TokenizerConfig
    added: tuple[str, ...] = ("[DEC]", "[ENC]")

    def open(self) -> Tokenizer:
        """The tokenizer; raises `InputError` where it is of a kind that cannot be added to."""
        opened = self.tokenizer.open()
        if not isinstance(opened, FastTokenizer):
            raise InputError(
                f"opening a tokenizer: nothing can be added to a {type(opened).__name__}; take a WordPiece, ByteBpe, "
                "TokenizerJson or TrainedBpe in WithTokens.tokenizer"
            )
        size = add_tokens(opened.fast, self.added, "WithTokens.added")
        return dataclasses.replace(opened, vocab_size=max(size, opened.vocab_size))
