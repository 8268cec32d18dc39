"""Hugging Face's tokenizer.json."""

from __future__ import annotations

import dataclasses

import tokenizers

from vlmax.data.tokenizers.tokenizer import (
    FastTokenizer,
    Tokenizer,
    add_tokens,
    mark,
    marks_before,
    put_before,
    read,
    wrong_file,
)


@dataclasses.dataclass(frozen=True)
class TokenizerJson:
    """A Hugging Face `tokenizer.json`.

    Attributes:
      path: the file.
      pad: the padding token as it is written there.
      bos: the token of the beginning, or None.
      eos: the token of the end, or None.
      added: tokens that the file does not have, with the next free ids; they stand for themselves in a text.
      begins: a model's prompt begins with `bos`, if the file itself has no rule (a "post-processor") for it.
    """

    path: str
    pad: str
    bos: str | None = None
    eos: str | None = None
    added: tuple[str, ...] = ()
    begins: bool = False

    def open(self) -> Tokenizer:
        """The tokenizer; raises `InputError` where the file is missing or something else, or a token is not in it."""
        data = read(self.path, "TokenizerJson.path")
        try:
            fast = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise wrong_file(self.path, "TokenizerJson.path", "a tokenizer.json", error) from None
        fast.no_padding()
        fast.no_truncation()
        size = add_tokens(fast, self.added, "TokenizerJson.added")

        bos, eos = (
            None if token is None else mark(fast, token, self.path, f"TokenizerJson.{field}")
            for field, token in (("bos", self.bos), ("eos", self.eos))
        )
        if self.begins and self.bos is not None and fast.post_processor is None:
            put_before(fast, self.bos)
        word = fast.decode(fast.encode("a", add_special_tokens=False).ids)
        spaced = word != word.strip()  # as with CLIP's and our own; others, such as GPT-2's, write what the text has
        pad = mark(fast, self.pad, self.path, "TokenizerJson.pad")
        return FastTokenizer(fast, size, pad, bos, eos, marks_before(fast), strip=spaced)
