"""GPT-2's tokenizer against a plain algorithm that works on spellings, and its files."""

import functools
import itertools
import json
import operator
import random
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data import text_parts
from model.errors import InputError
from model.stories import generate_stories
from model.tokenizers.bpe import BPETokenizer
from model.tokenizers.gpt2 import SPELLING, GPT2Tokenizer, piece_pattern
from model.tokenizers.tokenizer import load_tokenizer

TEXT = generate_stories(8_000, seed=5) + "é東 don't 12½ we'll " * 4
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
# Unicode's property White_Space
SPACES = set("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | set(map(chr, range(0x2000, 0x200B)))


@functools.cache
def written():
    """Return the content of a small `vocab.json`, with numbers in any order, and the merges."""
    learned = BPETokenizer(340)
    learned.train(TEXT)
    spelled = ["".join(SPELLING[value] for value in learned.token_bytes(token)) for token in range(learned.vocab_size)]
    numbers = list(range(len(spelled) + 1))
    random.Random(1).shuffle(numbers)
    vocabulary = dict(zip([*spelled, "<|endoftext|>"], numbers, strict=True))
    return vocabulary, [(spelled[first], spelled[second]) for first, second in learned.merges]


def write(folder, vocabulary, merges):
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder / "vocab.json"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return GPT2Tokenizer.read(write(tmp_path_factory.mktemp("gpt2"), *written()))


def kind(character):
    if character in SPACES:
        return "space"
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "mark"


def plain_pieces(text):
    """Cut a text as GPT-2 does, one character after the other."""
    pieces, place = [], 0
    while place < len(text):
        end = next((place + len(c) for c in CONTRACTIONS if text.startswith(c, place)), None)
        if end is None:
            start = place + (text[place] == " " and text[place + 1 : place + 2] not in SPACES | {""})
            end = start
            while end < len(text) and kind(text[end]) == kind(text[start]):
                end += 1
            if kind(text[start]) == "space" and end < len(text) and end - start > 1:
                end -= 1  # the last one goes with what follows
        pieces.append(text[place:end])
        place = end
    return pieces


def plain_encode(text):
    """Merge spellings, the pair that stands first in the list, at each place of the piece."""
    vocabulary, merges = written()
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    tokens = []
    for number, part in enumerate(text.split("<|endoftext|>")):
        tokens += [vocabulary["<|endoftext|>"]] if number else []
        for piece in plain_pieces(part):
            word = [SPELLING[value] for value in piece.encode()]
            while True:
                pairs = [pair for pair in itertools.pairwise(word) if pair in ranks]
                if not pairs:
                    break
                pair = min(pairs, key=ranks.__getitem__)
                place = 0
                while place + 1 < len(word):
                    if (word[place], word[place + 1]) == pair:
                        word[place : place + 2] = ["".join(pair)]
                    place += 1
            tokens += [vocabulary[spelled] for spelled in word]
    return tokens


PARTS = st.lists(
    st.sampled_from(
        [*"ab 's 12½²Ⅷ٣_-é東😀\x1c\x85\xa0\u2028\u0301\n\t", *CONTRACTIONS, "<|endoftext|>", "the ", " was"]
    )
    | st.characters(codec="utf-8"),
    max_size=25,
).map("".join)


@settings(deadline=None, max_examples=300)
@given(text=PARTS)
def test_any_text_is_cut_encoded_and_decoded_as_by_the_plain_algorithm(text, tokenizer):
    assert piece_pattern().findall(text) == plain_pieces(text)
    tokens = tokenizer.encode(text)
    assert tokens == plain_encode(text)
    assert tokenizer.decode(tokens) == text


def test_every_character_is_of_the_right_kind():
    for character in map(chr, range(0x110000)):
        if unicodedata.category(character) not in ("Cs", "Cn"):
            text = f"a{character}1 {character}"
            assert piece_pattern().findall(text) == plain_pieces(text), hex(ord(character))


def test_a_long_text_and_its_parts(tokenizer):
    tokens = tokenizer.encode(TEXT)
    assert tokens == plain_encode(TEXT)
    assert len(tokens) < len(TEXT) * 0.7
    parts = [tokenizer.encode(part) for part in text_parts(TEXT.replace("\n\n", "\n"), 100)]
    assert len(parts) > 5
    assert functools.reduce(operator.iadd, parts, []) == tokenizer.encode(TEXT.replace("\n\n", "\n"))


def test_against_the_library_of_hugging_face(tokenizer, tmp_path):
    # not "tokenizers", which a folder of tests is called too
    tokenizers = pytest.importorskip("tokenizers.implementations")
    path = write(tmp_path, *written())
    theirs = tokenizers.ByteLevelBPETokenizer(str(path), str(path.with_name("merges.txt")))
    assert theirs.encode(TEXT).ids == tokenizer.encode(TEXT)


def test_the_rest_of_the_interface(tokenizer, tmp_path):
    vocabulary, _ = written()
    assert tokenizer.vocab_size == len(vocabulary)
    assert tokenizer.beginning() == vocabulary["<|endoftext|>"]
    assert tokenizer.token_bytes(vocabulary["Ġ"]) == b" "
    tokenizer.save(tmp_path / "tokenizer.json")
    tokenizer.write(tmp_path)
    for other in (load_tokenizer(tmp_path / "tokenizer.json"), GPT2Tokenizer.read(tmp_path / "vocab.json")):
        assert other.fingerprint() == tokenizer.fingerprint()
        assert other.encode(TEXT) == tokenizer.encode(TEXT)
    assert json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")) == vocabulary
    with pytest.raises(InputError, match="not trained here"):
        tokenizer.train("abc")


def changed(change):
    vocabulary, merges = written()
    vocabulary, merges = dict(vocabulary), list(merges)
    change(vocabulary, merges)
    return vocabulary, merges


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda vocabulary, merges: vocabulary.pop("a"), "vocab.json does not fit merges.txt: it lacks 'a'"),
        (lambda vocabulary, merges: vocabulary.popitem(), "are not 0 to 339, each once"),
        (lambda vocabulary, merges: vocabulary.update(a="7"), "not a list of whole numbers"),
        (lambda vocabulary, merges: vocabulary.update(a=vocabulary["b"]), "are not 0 to 340, each once"),
        (lambda vocabulary, merges: merges.append(("a",)), "merges.txt: merge 84 is 'a'"),
        (
            lambda vocabulary, merges: merges.insert(0, ("Ġthe", "a")),
            "merge 0 is 'Ġthe a'; wanted two tokens made before",
        ),
        (lambda vocabulary, merges: merges.append(merges[0]), "merge 84 makes .*, which was there before"),
        (lambda vocabulary, merges: merges.append(("q", "q")), "it lacks 'qq'"),
    ],
    ids=range(8),
)
def test_files_that_do_not_belong_together(change, message, tmp_path):
    with pytest.raises(InputError, match=message) as refused:
        GPT2Tokenizer.read(write(tmp_path, *changed(change)))
    assert "\n" not in str(refused.value)


def test_files_that_are_something_else(tmp_path):
    path = write(tmp_path, *written())
    (tmp_path / "merges.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"merges\.txt is not UTF-8"):
        GPT2Tokenizer.read(path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(InputError, match=r"merges\.txt does not exist"):
        GPT2Tokenizer.read(path)
    path.write_text("[1]")
    with pytest.raises(InputError, match="not an object"):
        GPT2Tokenizer.read(path)
    saved = {"format": "positron-tokenizer", "version": 1, "kind": "gpt2", "vocab_size": 256, "special_tokens": []}
    path.write_text(json.dumps({**saved, "merges": [], "numbers": [0] * 256}))
    with pytest.raises(InputError, match="are not 0 to 255, each once"):
        load_tokenizer(path)
