"""Tokens of captions against those of the Stanford PTB tokenizer 3.4.1, as coco-caption calls it."""

from __future__ import annotations

import gzip
import json

import pytest

from tests.shared import shared
from vlmax.evaluation.scores.ptb import tokenized, tokenized_in_order


def test_every_caption_of_val2017():
    """In the order of the file's images, each with its captions by their ids, as the reference read them."""
    with gzip.open(shared("data/coco_captions_val2017/captions_val2017.json.gz")) as file:
        content = json.load(file)
    captions: dict[int, list[str]] = {image["id"]: [] for image in content["images"]}
    for annotation in sorted(content["annotations"], key=lambda annotation: annotation["id"]):
        captions[annotation["image_id"]].append(annotation["caption"])
    with gzip.open(shared("data/reference/ptb_tokenized_val2017.jsonl.gz"), "rt") as file:
        wanted = {row["image_id"]: row["tokenized"] for row in map(json.loads, file)}
    texts = [text for of_one in captions.values() for text in of_one]
    theirs = [text for image in captions for text in wanted[image]]
    own = tokenized_in_order(texts)
    assert len(texts) == len(theirs) == 25_014
    assert [(t, o, w) for t, o, w in zip(texts, own, theirs, strict=True) if o != w] == []


# Printed by the reference for each of these lines.
CASES = [
    ("a man can't, won't, isn't and ain't; don't!", "a man ca n't wo n't is n't and ai n't do n't"),
    ("you're we've I'd they'll he's I'm let's", "you 're we 've i 'd they 'll he 's i 'm let 's"),
    ("cannot gonna gotta wanna lemme gimme go", "can not gon na got ta wan na lem me gim me go"),
    ("'tis the season and 'twas night, d'ye know more'n that",
     "'t is the season and 't was night d'ye know more 'n that"),
    ("o'clock O'Brien B'Gosh ma'am y'all rock 'n' roll rock'n'roll",
     "o'clock o'brien b'gosh ma'am y' all rock 'n' roll rock 'n' roll"),
    ("the 1990's and '90s and 90's 'em 'til 'till 'cause ol' man somethin' dunkin' donuts",
     "the 1990 's and '90s and 90 's 'em 'til 'till 'cause ol' man somethin' dunkin' donuts"),
    ("two men wow!! really?! what??", "two men wow !! really ?! what ??"),
    ("wait... no.... yes.. ok\u2026", "wait no yes ok"),
    ("a cat -- a dog --- here ---- there ----- end", "a cat a dog here there ----- end"),
    ("\u201cquoted\u201d \u2018single\u2019 \"double\" 'single' `back` ``tick''",
     "quoted single double single back tick"),
    ("(round) [square] {curly} <tag> <b>bold</b>",
     "-lrb- round -rrb- -lsb- square -rsb- -lcb- curly -rcb- <tag> <b> bold </b>"),
    ("http://www.example.com/a.html and www.foo.org foo.com me@foo.com",
     "http://www.example.com/a.html and www.foo.org foo.com me@foo.com"),
    ("a 50% off $5 sign and \xa36 \u20ac7 10\xa2 #1 @home &amp; R&B AT&T b&w A&W",
     "a 50 % off $ 5 sign and # 6 $ 7 10 cents # 1 @home & r&b at&t b & w a&w"),
    ("1/2 pizza, 2 1/2 men, 3-1/2, 10/11/2012, 12-15 people, 10,000 cars, 3.5 feet, .5 -5 +7 1,2,3",
     "1/2 pizza 2\xa01/2 men 3-1/2 10/11/2012 12-15 people 10,000 cars 3.5 feet .5 -5 +7 1,2,3"),
    ("5:30pm 5 pm 5p.m. 7 a.m. at 10am 6ft 5lbs", "5:30 pm 5 pm 5p m. 7 a.m. at 10am 6ft 5lbs"),
    ("he ran in Jan. and Feb. or on Mon. or Sat. or Sun. today",
     "he ran in jan. and feb. or on mon. or sat or sun today"),
    ("she is ill. they miss. we wash. the mass. the ore.", "she is ill they miss we wash the mass the ore"),
    ("etc. vs. e.g. i.e. approx. no. 5 No. 5 fig. 3 pp. 4 vol. 2 no. way",
     "etc. vs. e.g. i.e. approx no. 5 no. 5 fig. 3 pp. 4 vol 2 no way"),
    ("plan A. The man ate plan B. a man with J. Smith and J.R. Smith in the U.S. The flag U.S.A. flag",
     "plan a the man ate plan b. a man with j. smith and j.r. smith in the u.s. the flag u.s.a. flag"),
    ("jack-o-lantern t-shirt pro-am anti-war -foo foo-", "jack-o-lantern t-shirt pro-am anti-war foo foo"),
    ("well-known/unknown and/or his/her a/b/c/d a/b/c x / y 24/7 w/ w/o",
     "well-known/unknown and/or his/her a/b/c / d a/b/c x / y 24/7 w / w/o"),
    ("caf\xe9 na\xefve emoji \U0001f600 here \u263a 25\xb0 25\xb0C \xa9",
     "caf\xe9 na\xefve emoji here \u263a 25 \xb0 25 \xb0 c \xa9"),
    ("snowboarder.a man waves,on shore;it one:two what?yes hey!you a..b",
     "snowboarder.a man waves on shore it one two what?yes hey!you a. b"),
    ("cap'n c'mon d'oeuvre l'orange d'Artagnan Ka'anapali Shi'ite Qur'an",
     "cap'n c'mon d'oeuvre l'orange d'artagnan ka'anapali shi'ite qur an"),
    ("the boys' toys' and the Jones's James' hats", "the boys toys and the jones 's james hats"),
    ("a_b foo_bar snake_case_word _under_ *star* **bold** \\ back",
     "a_b foo_bar snake_case_word _ under _ * star * ** bold ** \\ back"),
    ("a pizza-,two-story building,multi-colored 3.5-inch 10,000-seat",
     "a pizza two-story building,multi-colored 3.5-inch 10,000-seat"),
    ("I've seen it.He's gone.It's ok.", "i 've seen it.he 's gone.it 's ok"),
    ("shelf., and box., end.; stop.: go", "shelf. and box. end. stop. go"),
    ("5 o' clock o'er the o'", "5 o clock o'er the o"),
    ("dont cant wont isnt im ive", "dont cant wont isnt im ive"),
    ("a man's-eye view o'neill's mother-in-law's men's-room",
     "a man 's eye view o'neill 's mother-in-law 's men 's room"),
    ("the 8' tall by 6\" wide 5'10\" man 3'", "the 8 tall by 6 wide 5 10 man 3"),
    ("a ... b . . . c . . d", "a b c d"),
    ("A street\nsign ", "a street sign"),
    ("Ave S. Many Ave S. MANY Ave S. many Ave S. Several Mr. S. Mr. Y",
     "ave s many ave s many ave s. many ave s. several mr. s mr. y"),
    ("", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), CASES)
def test_hard_cases(text, wanted):
    assert tokenized(text) == wanted


def test_the_next_caption_says_whether_a_letter_ended_a_sentence():
    assert tokenized_in_order(["12th Ave S. ", "A sign.", "CTH D.", "Several S.", "Many"]) == (
        "12th ave s", "a sign", "cth d.", "several s", "many",
    )  # fmt: skip
