"""Captions as tokens: what coco-caption makes of them with the Stanford PTB tokenizer 3.4.1, without Java.

Words of the Penn Treebank: `can't` is `ca n't`, `dog's` is `dog 's`, `gonna` is `gon na`; hyphens, slashes between
words and full stops of abbreviations stay; brackets are `-lrb-` and the like; all is lower case, and then the
reference's list of punctuation is left out. Quirks of the reference that scores depend on:

* Brackets are on that list in upper case, so that `-lrb-` and `-rrb-` stay. `!!` and `?!` are not on it, and stay.
* A word, a full stop and a word without space between them are one token, `street.a`.
* `22 3/4` is one token, with a space in it that does not break (which parting at white space breaks nevertheless).
* A letter's full stop stays, `S. Lane`, unless a sentence seems to begin after it. The reference puts all captions into
  one file, a line each, so that for `12th Ave S.` it looks at the caption on the next line: `tokenized_in_order`.

As in a lexer, all rules are tried at a place, and the longest match is taken, counting what a rule asks to follow; of
equal ones the first.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

LEFT_OUT = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
SPELLED = {'"': "''", "---": "--", "----": "--", "\xa3": "#", "\u20ac": "$", "\xa2": "cents", "&amp;": "&"}
"""Tokens that the reference prints in another way: quotes, dashes, and pounds, euros and cents in ASCII."""
_ASCII = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\xb4": "'", "\u201c": '"', "\u201d": '"', "\u2026": "...", "\u2013": "--",
    "\u2014": "--",
})  # fmt: skip

_JOINED = {"can": "not", "gon": "na", "got": "ta", "wan": "na", "lem": "me", "gim": "me", "'t": "is|was"}
"""What is written as one word and read as two."""
_MONTHS_AND_DAYS = "jan feb mar apr jun jul aug sept? oct nov dec mon tues? thu thurs wed fri"
_STATES = """ala ariz calif colo conn ct dak fla ga ind kans? ky md mich minn mo mont neb nev okla penn tenn va vt wisc?
    wyo"""
_STATES_THAT_ARE_WORDS = "Az Ark Del Ill La Mass Miss Ore Pa Tex Wash"
_FIRMS = "inc cos? corp ltd plc rt bancorp bhd assn univ intl sys jr sr bros esq etc al seq tel est ext sq bldg"
_TITLES = """mr mrs ms drs? profs? sens? reps? attys? lt col gen messrs govs? adm rev maj sgt cpl pvt capt ste? ave pres
    lieut hon brig cmdr pfc spc supts? det mt ft adj adv asst assoc ens insp mlle mme msgr sfc"""
_PLACES = "invt elec natl m[ft]g dept blvd rd exhs? wm jos cie"
_BEFORE_NUMBERS = "ca figs? prop nos? sect? arts? pp op approx"
_BEGIN_SENTENCES = r"""A About According Additionally After An As At But Earlier He Her Here However If In It Last Many
    More Mr\. Ms\. Now Once One Other Our She Since So Some Such That The Their Then There These They This We What When
    While Yet You"""


def _any(*words: str) -> str:
    return "|".join(" ".join(words).split())


def _rules() -> tuple[re.Pattern[str], ...]:
    """Each: the token is its first group, and what must follow is part of the match."""
    letter, sign = r"[^\W\d_]", r"[^\W_]"
    word = rf"{letter}{sign}*(?:[.!?]{letter}{sign}*)*"
    plain_number = r"(?:\d*(?:[.,]\d+)+|\d+(?:[.:,]\d+)*)"
    number = rf"[-+]?{plain_number}"
    french = rf"(?:[dol]'(?={sign}))?"
    part = rf"{sign}+(?:-{letter}+){{0,2}}"
    short = _any(_MONTHS_AND_DAYS, _STATES, _FIRMS, _TITLES, _PLACES)
    ends = rf"(?!{letter})"
    return tuple(
        re.compile(pattern, re.IGNORECASE)
        for pattern in (
            *(rf"({first})(?:{second}){ends}" for first, second in _JOINED.items()),
            rf"({word})'(?:m|s|d|re|ve|ll){ends}",
            rf"({letter}*[a-mo-z])n't{ends}",
            rf"({word})",
            # Apostrophes within words, and in place of a letter.
            rf"((?-i:[A-HJ-XZn])'{letter}{{2,}}|{letter}*[aeiou]'[aeiou]{letter}*|(?:[ldj]|ol|dunkin|somethin)')",
            rf"('n'|'(?:n|em|till?|cause|twixt|[2-9]0s){ends}|cap'n|c'mon|d'ye)",
            rf"(y'){letter}",
            rf"('(?:m|s|d|re|ve|ll|em)|n't){ends}",
            # Addresses.
            r"((?:https?|ftp)://[^\s<>|()]*[^\s<>|().!?,;:&'\"])",
            r"((?:www\.)?(?:[^\s<>|.!?,()\"]+\.)+(?:com|net|org|edu)(?:/[^\s<>|]*[^\s<>|.!?,;:&])?)(?!\w)",
            r"([\w.%+-]+@[\w-]+(?:\.[\w-]+)+)",
            r"(@[a-z_]\w*|</?[a-z][^<>]*>|&amp;)",
            # Numbers.
            r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4}|\d{4}[-/]\d{1,2}[-/]\d{1,2})",
            rf"({number})",
            r"((?:\d{1,4}[- \xa0])?\d{1,4}/\d{1,4})",
            r"(\(\d{3}\)\s?\d{3}-\d{4})",
            # Words joined by slashes, hyphens and the like.
            rf"({part}(?:/{part}){{1,2}})",
            rf"({french}(?:{sign}+|{number})(?:-{french}(?:{sign}+|{plain_number}))*)",
            r"((?-i:[A-Z]+(?:[+&][A-Z]+)+))",
            rf"({sign}[^\W_]*(?:[.,]{sign}*)*(?:[-_](?:{sign}+|{letter}(?:\.{letter})+\.))+)",
            # Full stops that stay.
            rf"({letter})\.\s+(?-i:{_any(_BEGIN_SENTENCES, _BEGIN_SENTENCES.upper())})(?:\s|$)",
            rf"({letter}(?:\.{letter})*\.|(?:ph|ed)\.d\.)",
            rf"((?:{short})\.s?|(?-i:{_any(_STATES_THAT_ARE_WORDS)})\.)",
            rf"((?:{_any(_BEFORE_NUMBERS)})\.)\s?\d",
            r"(vs\.)",
            rf"({word}\.)[,;:]",
            # Punctuation.
            r"(\.\.\.+)",
            r"(-+)",
            r"([?!]+)",
            r"(''|``)",
            r"(\*+|_+|@+|#+|<<|>>)",
            rf"([<>]?[:;=][-o*']?(?-i:[()DPdpO\\{{@|\[\]]))(?!{sign})",
            r"(\S)",
        )
    )


RULES = _rules()
_LOWER_CASE = re.compile(r"[a-z]+(?= |$)")
_JOINED_WORDS = frozenset(["cannot", "gonna", "gotta", "wanna", "lemme", "gimme"])


def tokenized_in_order(texts: Sequence[str]) -> tuple[str, ...]:
    """The tokens of captions, as the reference reads them one after the other."""
    return tuple(tokenized(text, after) for text, after in zip(texts, [*texts[1:], ""], strict=True))


def tokenized(text: str, after: str = "") -> str:
    """The tokens of a caption, parted by spaces; the caption after it matters where this one ends in a full stop."""
    text = " ".join(text.split("\n")).rstrip()
    return _tokenized(text, after.lstrip().split(" ")[0] if text.endswith(".") else "")


@functools.lru_cache(maxsize=1 << 16)
def _tokenized(text: str, after: str) -> str:
    length = len(text.translate(_ASCII))
    tokens = _tokens(f"{text}\n{after}".translate(_ASCII), length)
    return " ".join(token for token in tokens if token not in LEFT_OUT)


def _tokens(text: str, length: int) -> list[str]:
    """The tokens that begin in the first so many characters."""
    found, place = [], 0
    while place < length:
        if text[place].isspace() or ord(text[place]) > 0xFFFF:  # what Java writes as two characters is left out
            place += 1
            continue
        quick = _LOWER_CASE.match(text, place)
        if quick is not None and quick[0] not in _JOINED_WORDS:
            found.append(quick[0])
            place = quick.end()
            continue
        match = max(filter(None, (rule.match(text, place) for rule in RULES)), key=re.Match.end)
        place = match.end(1)
        found.append(_spelled(match[1]))
    return found


def _spelled(token: str) -> str:
    """As the reference prints it."""
    if token.startswith("..."):
        return "..."
    token = SPELLED.get(token, token.lower().replace(" ", "\xa0"))
    return "".join(BRACKETS.get(letter, letter) for letter in token)
