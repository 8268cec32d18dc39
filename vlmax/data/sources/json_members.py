"""A large JSON file piece by piece: what its outermost list or object holds, one thing at a time.

Annotation files are one object or list of up to gigabytes, of which only small parts are wanted at a time; `json.load`
would hold all of it.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

CHUNK = 1 << 20  # characters read at once
LONGEST = 1 << 28  # characters of one value

_SPACE = " \t\n\r"


def members(handle: IO[bytes]) -> Iterator[tuple[str | None, Any]]:
    """Yields what the outermost value of a JSON file holds.

    Of a list, (None, element) for every element. Of an object, (name, element) for every element of each member that is
    a list, and (name, value) for each other member.

    Raises:
      ValueError: the file is not JSON, or its outermost value is neither list nor object; the message says where.
    """
    text = _Text(handle)
    opening = text.next()
    if opening == "[":
        for element in text.elements():
            yield None, element
    elif opening == "{":
        yield from text.pairs()
    else:
        raise ValueError("it is neither a JSON list nor a JSON object" if opening else "it is empty")
    if text.next():
        raise text.problem("it goes on after its end (one JSON value a line?)")


class _Text:
    """A window over the text of a file."""

    def __init__(self, handle: IO[bytes]):
        self._handle = handle
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._json = json.JSONDecoder()
        self._window, self._at, self._before, self._ended = "", 0, 0, False

    def problem(self, what: str) -> ValueError:
        """An error that says where the reading stands."""
        return ValueError(f"{what}, at character {self._before + self._at}")

    def next(self) -> str:
        """The next character that is not space, or nothing at the end; it stays."""
        while True:
            while self._at < len(self._window) and self._window[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._more():
                return ""

    def elements(self) -> Iterator[Any]:
        """The elements of the list that begins here."""
        self._take("[")
        if self.next() != "]":
            yield self._value()
            while self.next() == ",":
                self._take(",")
                yield self._value()
        self._take("]")

    def pairs(self) -> Iterator[tuple[str, Any]]:
        """The members of the object that begins here, those that are lists element by element."""
        self._take("{")
        if self.next() != "}":
            yield from self._pair()
            while self.next() == ",":
                self._take(",")
                yield from self._pair()
        self._take("}")

    def _pair(self) -> Iterator[tuple[str, Any]]:
        if self.next() != '"':
            raise self.problem("a name in quotes is missing")
        name = self._value()
        self._take(":")
        for value in self.elements() if self.next() == "[" else (self._value(),):
            yield name, value

    def _take(self, character: str) -> None:
        if self.next() != character:
            raise self.problem(f"{character!r} is missing")
        self._at += 1

    def _value(self) -> Any:
        """The value that begins here, read on until it is whole."""
        self.next()
        while True:
            try:
                value, end = self._json.raw_decode(self._window, self._at)
                size = end - self._at
                # A number may go on behind the window: of `1e+5` it may hold `1e+`, and `1` is a number.
                if len(self._window) - end > 2 or not self._more():
                    self._at += size
                    return value
            except (json.JSONDecodeError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self._more():
                    raise self.problem(f"it is not JSON ({str(error).split(':')[0]})") from None

    def _more(self) -> bool:
        """Reads on, as much again as is waiting; False at the end of the file."""
        if self._ended:
            return False
        waiting = len(self._window) - self._at
        if waiting > LONGEST:
            raise self.problem(f"a value has more than {LONGEST} characters")
        data = self._handle.read(max(CHUNK, waiting))
        self._ended = not data
        try:
            new = self._decode(data, self._ended)
        except UnicodeDecodeError as error:
            raise self.problem(f"it is not UTF-8 ({error.reason})") from None
        self._window, self._before, self._at = self._window[self._at :] + new, self._before + self._at, 0
        return bool(new) or self._more()
