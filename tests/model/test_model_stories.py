"""The sample text: deterministic, varied, grammatical where a program can tell."""

import hashlib
import re

import pytest

from model.errors import InputError
from model.stories import CREATURES, THINGS, generate_stories

TEXT = generate_stories(300_000, seed=1)


def test_same_seed_same_text():
    assert (
        generate_stories(10_000, seed=1) == generate_stories(10_000, seed=1) == TEXT[: len(generate_stories(10_000, 1))]
    )
    assert generate_stories(10_000, seed=2) != generate_stories(10_000, seed=1)
    # The same seed must give the same text; a change of the grammar must change this digest.
    assert hashlib.sha256(TEXT.encode()).hexdigest().startswith("f011ca798162bac0")


def test_size_and_alphabet():
    assert 300_000 <= len(TEXT) < 303_000
    assert TEXT.isascii()
    assert TEXT.endswith("\n\n")
    words = set(re.findall(r"[A-Za-z]+", TEXT))
    assert 400 < len(words) < 1000
    with pytest.raises(InputError, match="at least 1 byte"):
        generate_stories(0)


def test_sentences_are_short_and_closed():
    for story in TEXT.strip().split("\n\n"):
        assert story[0].isupper()
        assert story[-1] in '.!?"'
        assert story.count('"') % 2 == 0
        assert "  " not in story
        for sentence in re.split(r'(?<=[.!?"])\s', story):
            assert len(sentence) < 100, sentence


def test_articles_and_number():
    assert not re.search(r"\b[Aa] [aeiou]", TEXT)
    assert not re.search(r"\b[Aa]n [^aeiou]", TEXT)
    different = [(singular, plural) for singular, plural in CREATURES + THINGS if singular != plural]
    singulars, plurals = map("|".join, zip(*different, strict=True))
    # An orange is a thing, and orange a colour.
    counted = "|".join(one for one, _ in different if one != "orange")
    for wrong in (
        rf"\b({plurals}) was\b",
        rf"\b({singulars}) were\b",
        rf"\bthese ({singulars})\b",
        rf"\bthis ({plurals})\b",
        rf"\b(two|three|many|some) ({counted})\b",
    ):
        assert not re.search(wrong, TEXT), wrong
