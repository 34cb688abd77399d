"""llama2.c's tokenizer, compared with the plain algorithm that tries all merges, and its files."""

import functools
import itertools
import random
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stories260k import TOKENIZER, needs_stories260k

from model.data import encode_texts
from model.errors import InputError
from model.tokenizers import llama2c
from model.tokenizers.llama2c import BYTE_PIECES, Llama2cTokenizer
from model.tokenizers.tokenizer import load_tokenizer

STRANGE = "naïve café — 東京 👩‍🔬 e\u0301 \x00\t\r\n  a  b\u2028 don't <0x0A> <s> ½ ٣ "


def vocabulary(*pieces):
    """Return pieces and scores: special tokens, bytes, the space, and these, the best first."""
    start = ["<unk>", "\n<s>\n", "\n</s>\n", *BYTE_PIECES]
    pieces = [piece for piece in dict.fromkeys((" ", *pieces)) if piece not in start]
    return start + pieces, [0.0] * len(start) + [-float(rank) for rank in range(len(pieces))]


def small():
    return Llama2cTokenizer(*vocabulary(*" abc", "ab", " a", "bc", "aa", "aaa", " ab", "cab", "  ", "é", "́"))


def plain_encode(pieces, scores, text):
    """Return a text's tokens as run.c finds them: one after the other over the whole text."""
    known = {piece: token for token, piece in enumerate(pieces)}
    tokens = [1] + ([known[" "]] if text else [])
    for character in text:
        tokens += [known[character]] if character in known else [3 + byte for byte in character.encode()]
    while True:
        best, best_score = None, np.float32(-1e10)
        for place in range(len(tokens) - 1):
            joined = known.get(pieces[tokens[place]] + pieces[tokens[place + 1]])
            if joined is not None and np.float32(scores[joined]) > best_score:
                best, best_score = (place, joined), np.float32(scores[joined])
        if best is None:
            return tokens
        tokens[best[0] : best[0] + 2] = [best[1]]


def plain_decode(pieces, tokens):
    """Return the bytes that run.c prints for tokens of which the first is given."""
    data = b"" if tokens[:1] == [1] else plain_piece(pieces[tokens[0]]) if tokens else b""
    for previous, token in itertools.pairwise(tokens):
        piece = pieces[token]
        data += plain_piece(piece[1:] if previous == 1 and piece[0] == " " else piece)
    return data


def plain_piece(piece):
    is_byte = len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
    return bytes([int(piece[3:5], 16)]) if is_byte else piece.encode()


MERGED = [
    "ab",
    "aab",
    "abab",
    "b",
    "a",
    "aabc",
    "caab",
    "ba",
    "bab",
    "cc",
    "ccc",
    "aa",
    "aaaa",
    "bc",
    "abc",
    "cab",
    " ab",
    "  ",
    "b a",
    " c",
    "b c",
    " aab",
]
# Few letters, so that merges overlap and wait for each other; characters that the vocabulary lacks;
# the spelling of bytes.
TEXTS = st.lists(st.sampled_from([*"aaabbc  <>0xAé😀\u0301\0", *MERGED]) | st.characters(codec="utf-8"), max_size=30)
PIECES = st.lists(st.sampled_from(MERGED) | st.text("<>0xA é", min_size=1, max_size=4), min_size=8, max_size=25)
SCORES = (0.0, -0.0, -1.0, -2.5, 3.0, 7.0, -1e10)


@settings(deadline=None, max_examples=300)
@given(text=TEXTS.map("".join), extra=PIECES, ranks=st.randoms(use_true_random=False))
def test_any_text_with_any_vocabulary_is_encoded_as_by_the_plain_algorithm(text, extra, ranks):
    pieces, scores = vocabulary(*" abc", *extra)
    # equal scores, scores in any order, and pieces that are never joined
    scores = scores[:259] + [ranks.choice(SCORES) for _ in pieces[259:]]
    tokenizer = Llama2cTokenizer(pieces, scores)
    tokens = plain_encode(pieces, scores, text)
    assert tokenizer.encode(text) == tokens
    assert tokenizer.encode(text) == tokens  # from memory
    assert tokenizer.decode(tokens) == text


@settings(deadline=None, max_examples=200)
@given(tokens=st.lists(st.integers(1, 275) | st.sampled_from([1, 3 + 32, 3 + 0xC3, 259]), max_size=30), cuts=st.data())
def test_any_tokens_are_decoded_as_by_the_plain_algorithm(tokens, cuts):
    tokenizer = small()
    tokens = [min(token, tokenizer.vocab_size - 1) for token in tokens]
    expected = plain_decode(tokenizer.pieces, tokens).decode("utf-8", "replace")
    assert tokenizer.decode(tokens) == expected
    # one after the other, in two decoders: the second goes on after a token of the first
    place = cuts.draw(st.integers(0, len(tokens)))
    first, second = tokens[:place], tokens[place:]
    data = plain_decode(tokenizer.pieces, first)
    decoder = tokenizer.incremental_decoder(first[-1] if first else None)
    rest = "".join(decoder.decode([token]) for token in second) + decoder.decode([], final=True)
    if first:
        after = plain_decode(tokenizer.pieces, tokens)[len(data) :]
        assert rest == after.decode("utf-8", "replace")
    else:
        assert rest == expected


def test_the_rule_of_merging():
    tokenizer = small()
    pieces = tokenizer.pieces

    def spelled(text):
        return [pieces[token] for token in tokenizer.encode(text)]

    assert spelled("") == ["\n<s>\n"]
    assert spelled(" ") == ["\n<s>\n", "  "]
    assert spelled("abc") == ["\n<s>\n", " ab", "c"]
    assert spelled("aaaa") == ["\n<s>\n", " a", "aaa"]
    assert spelled("e\u0301") == ["\n<s>\n", " ", "<0x65>", "\u0301"]
    assert spelled("\U0001f600")[2:] == ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
    assert tokenizer.decode([1, tokenizer.encode("ab")[1]]) == "ab"
    assert tokenizer.decode(tokenizer.encode("ab")[1:]) == " ab"
    assert tokenizer.decode([3 + 0xF0, 3 + 0x9F]) == "\ufffd"
    assert tokenizer.beginning() == 1
    spelling = Llama2cTokenizer(*vocabulary("A", "<0xA9>A", "A<0xC3>"))
    for text, expected in (
        ("éAé", ["<0xC3>", "<0xA9>A", "<0xC3>", "<0xA9>"]),
        ("Aé", ["A<0xC3>", "<0xA9>"]),
    ):
        assert [spelling.pieces[token] for token in spelling.encode(text)][2:] == expected


def test_strange_text_survives():
    tokenizer = small()
    assert tokenizer.decode(tokenizer.encode(STRANGE)) == STRANGE
    with pytest.raises(InputError, match=r"U\+DCFF at position 1"):
        tokenizer.encode("a\udcff")
    with pytest.raises(InputError, match="token -1 is outside"):
        tokenizer.decode([-1])


def test_files_of_both_kinds(tmp_path):
    tokenizer = small()
    tokenizer.save(tmp_path / "tokenizer.json")
    tokenizer.write(tmp_path / "tokenizer.bin")
    for other in (load_tokenizer(tmp_path / "tokenizer.json"), Llama2cTokenizer.read(tmp_path / "tokenizer.bin")):
        assert (other.pieces, other.scores) == (tokenizer.pieces, tokenizer.scores)
        assert other.fingerprint() == tokenizer.fingerprint()
        assert other.encode(STRANGE) == tokenizer.encode(STRANGE)
    changed = Llama2cTokenizer(tokenizer.pieces, [*tokenizer.scores[:-1], -999.0])
    assert changed.fingerprint() != tokenizer.fingerprint()


def test_a_text_is_one_whatever_its_length(monkeypatch):
    """Tokens of a long text are those of the whole, not of parts encoded one by one."""
    monkeypatch.setattr("model.data.PART_LENGTH", 10)
    tokenizer = small()
    tokens = encode_texts(tokenizer, ["ab\nab\n" * 10, "c"])
    assert tokens.tolist() == tokenizer.encode("ab\nab\n" * 10) + tokenizer.encode("c")


@functools.cache
def written():
    """Return a file's bytes."""
    pieces, scores = vocabulary(*" abc", "ab")
    spelled = [piece.encode() for piece in pieces]
    head = struct.pack("<i", max(map(len, spelled)))
    return head + b"".join(
        struct.pack("<fi", score, len(piece)) + piece for score, piece in zip(scores, spelled, strict=True)
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it ends within token 0"),
        (written()[:3], "it ends within token 0"),
        (written()[:4], "empty"),
        (written()[:-1], "it ends within token 263"),
        (written()[:-3], "it ends within token 263"),
        (written()[:99], "it ends within token 6"),
        (b"\x01" + written()[1:], "token 0 has 5 bytes; the longest has 1"),
        (written()[:-2] + b"\xff\xff", "token 263 is not UTF-8"),
        (written() + struct.pack("<fi", -7, 1) + b"a", "entry twice"),
        (written() + struct.pack("<fi", float("nan"), 1) + b"z", "finite score"),
        (written() + struct.pack("<fi", -7, 0), "token 264 has 0 bytes"),
        (written() + struct.pack("<fi", -7, -1), "token 264 has -1 bytes"),
        (written().replace(b"<0x41>", b"<0x4a>"), "are not the bytes"),
        (bytes(range(256)) * 20, "token 0 has"),
        (b"Once upon a time there was a text.", "it ends within token 0"),
    ],
    ids=range(15),
)
def test_a_file_that_is_something_else_is_one_line(data, message, tmp_path):
    (tmp_path / "tok.bin").write_bytes(data)
    with pytest.raises(InputError, match=rf"tok\.bin is not a (whole )?llama2\.c tokenizer: .*({message})") as refused:
        Llama2cTokenizer.read(tmp_path / "tok.bin")
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="does not exist"):
        Llama2cTokenizer.read(tmp_path / "none.bin")


def test_vocabularies_that_cannot_be():
    pieces, scores = vocabulary("a")
    for wrong, numbers, message in (
        (pieces[:-2], scores[:-2], "none for the space"),
        ([*pieces, ""], [*scores, 0], "empty token"),
        (pieces, scores[:-1], "one finite score"),
        (pieces[:200], scores[:200], "are not the bytes"),
    ):
        with pytest.raises(InputError, match=message):
            Llama2cTokenizer(wrong, numbers)
    with pytest.raises(InputError, match="not trained here"):
        small().train("abc")


def test_time_grows_with_the_length_even_without_a_blank(monkeypatch):
    """Lookups of joined pieces, which all work but copying consists of, are counted."""
    looked_up = 0

    class Counting(dict):
        def get(self, *arguments):
            nonlocal looked_up
            looked_up += 1
            return super().get(*arguments)

    tokenizer = small()
    monkeypatch.setattr(tokenizer, "_tokens", Counting(tokenizer._tokens))
    for letters in ("a", "abc", "ab c"):
        looked_up = 0
        text = "".join(random.Random(1).choices(letters, k=50_000))
        tokenizer._cache.clear()
        tokens = tokenizer.encode(text)
        assert looked_up < 4 * len(text)
        assert tokenizer.decode(tokens) == text


def test_no_more_is_remembered_than_stated(monkeypatch):
    monkeypatch.setattr(llama2c, "CACHE_SIZE", 3)
    tokenizer = small()
    tokenizer.encode("a b c ab bc abc cab")
    assert len(tokenizer._cache) <= 3


@needs_stories260k
def test_the_published_vocabulary(tmp_path):
    tokenizer = Llama2cTokenizer.read(TOKENIZER)
    assert tokenizer.vocab_size == 512
    assert max(len(piece.encode()) for piece in tokenizer.pieces) == 7
    assert tokenizer.scores[259:] == [-float(rank) for rank in range(253)]
    tokenizer.write(tmp_path / "tok.bin")
    assert (tmp_path / "tok.bin").read_bytes() == TOKENIZER.read_bytes()
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.\n"
    for text in (story, STRANGE, story * 3 + STRANGE, "", " ", "  two  spaces", "\n\n"):
        tokens = tokenizer.encode(text)
        assert tokens == plain_encode(tokenizer.pieces, tokenizer.scores, text)
        assert tokenizer.decode(tokens) == text
    began = time.process_time()
    tokenizer.encode(story * 2000)
    assert time.process_time() - began < 5


@needs_stories260k
@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=60) | st.text(" theandouswim.é<>", max_size=60))
def test_the_published_vocabulary_with_any_text(text):
    tokenizer = published()
    tokens = tokenizer.encode(text)
    assert tokens == plain_encode(tokenizer.pieces, tokenizer.scores, text)
    assert tokenizer.decode(tokens) == text


@functools.cache
def published():
    return Llama2cTokenizer.read(TOKENIZER)
