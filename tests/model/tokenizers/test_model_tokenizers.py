"""The three tokenizers: round trips, files, errors."""

import functools
import io
import itertools
import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data import encode_texts
from model.errors import InputError
from model.stories import generate_stories
from model.tokenizers.bpe import PIECE, BPETokenizer
from model.tokenizers.bpe_training import count_words, learn_merges
from model.tokenizers.character import CharacterTokenizer
from model.tokenizers.token_cells import TokenCells
from model.tokenizers.tokenizer import load_tokenizer
from model.tokenizers.word import UNKNOWN, WordTokenizer

TEXT = generate_stories(20_000, seed=3)
STRANGE = "naïve café — 東京 👩‍🔬 \x00\t\r\n  a  b\u2028 don't 12.5% __init__ ½ ٣"
MAKERS = [CharacterTokenizer, lambda: WordTokenizer(200), lambda: BPETokenizer(400, ["<|end|>"])]


def trained(make):
    tokenizer = make()
    tokenizer.train(TEXT)
    return tokenizer


@pytest.mark.parametrize("make", MAKERS)
def test_round_trip_of_known_text(make):
    tokenizer = trained(make)
    tokens = tokenizer.encode(TEXT[:2000])
    assert set(tokens) <= set(range(tokenizer.vocab_size))
    if not isinstance(tokenizer, WordTokenizer):
        assert tokenizer.decode(tokens) == TEXT[:2000]
    assert tokenizer.encode_batch(["The", "sun"]) == [tokenizer.encode("The"), tokenizer.encode("sun")]
    assert tokenizer.encode("") == []


@pytest.mark.parametrize("make", MAKERS)
def test_file_round_trip(make, tmp_path):
    tokenizer = trained(make)
    tokenizer.save(tmp_path / "tokenizer.json")
    for loaded in (load_tokenizer(tmp_path / "tokenizer.json"), type(tokenizer).load(tmp_path / "tokenizer.json")):
        assert type(loaded) is type(tokenizer)
        assert loaded.vocab_size == tokenizer.vocab_size
        assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert content["version"] == 1


@pytest.mark.parametrize("make", MAKERS)
def test_untrained_and_empty(make):
    with pytest.raises(InputError, match="train"):
        make().encode("a")
    with pytest.raises(InputError, match="empty"):
        make().train("")
    with pytest.raises(InputError, match="empty"):
        make().train([])


@pytest.mark.parametrize("make", MAKERS)
def test_tokens_outside_the_vocabulary(make):
    tokenizer = trained(make)
    for token in (-1, tokenizer.vocab_size):
        with pytest.raises(InputError, match=f"token {token} is outside"):
            tokenizer.decode([token])


def test_several_texts_are_one_corpus():
    first, second = CharacterTokenizer(), CharacterTokenizer()
    first.train(["ab", "bc"])
    second.train("cab")
    assert first.characters == second.characters == ["a", "b", "c"]


def test_unknown_characters_are_named():
    with pytest.raises(InputError, match=r"unknown characters: '\?' \(U\+003F\), 'é' \(U\+00E9\)"):
        _abc().encode("aé?b")


def _abc():
    tokenizer = CharacterTokenizer()
    tokenizer.train("abc")
    return tokenizer


def test_words_keep_the_most_frequent():
    tokenizer = WordTokenizer(max_vocab_size=4)
    tokenizer.train("the cat the cat the dog. the")
    assert tokenizer.pieces == [UNKNOWN, " the", " cat", " dog"]
    assert tokenizer.decode(tokenizer.encode(" the dog!")) == f" the dog{UNKNOWN}"


def test_words_with_room_for_all_keep_every_text():
    tokenizer = WordTokenizer()
    tokenizer.train([STRANGE, TEXT])
    assert tokenizer.decode(tokenizer.encode(STRANGE)) == STRANGE


@pytest.mark.parametrize("vocab_size", [256, 300, 1000])
def test_bpe_survives_any_text(vocab_size):
    tokenizer = BPETokenizer(vocab_size)
    tokenizer.train(TEXT)
    assert tokenizer.decode(tokenizer.encode(STRANGE)) == STRANGE
    assert tokenizer.vocab_size <= vocab_size
    # half a character decodes to the replacement character, not to an error
    assert tokenizer.decode(tokenizer.encode("東")[:1]) == "\ufffd"


# A stray continuation byte, and a character of four bytes that begins before the fifth token is
# there.
AFTER_A_STRAY_BYTE = [0x80, 0xF0, 0x9F, 0x98, 0x80, 0x6F, 0x6B]


@functools.cache
def byte_tokenizer():
    """Return a tokenizer with all bytes, and tokens that split characters."""
    tokenizer = BPETokenizer(280)
    tokenizer.train("é東😀🙂 " * 9)
    assert tokenizer.vocab_size > 256
    return tokenizer


def test_half_a_character_is_one_replacement_and_what_follows_is_whole():
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(AFTER_A_STRAY_BYTE) == "\ufffd😀ok"
    decoder = tokenizer.incremental_decoder()
    pieces = [decoder.decode([token]) for token in AFTER_A_STRAY_BYTE]
    assert pieces == ["\ufffd", "", "", "", "😀", "o", "k"]
    assert decoder.decode([0xE6, 0x9D]) == ""
    assert decoder.decode([], final=True) == "\ufffd"


@given(
    tokens=st.lists(
        st.integers(0, 255) | st.sampled_from([0x80, 0xC3, 0xE6, 0xED, 0xA0, 0xF0, 0x9F, 0xF4]) | st.integers(256, 261)
    ),
    cuts=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_tokens_decoded_piece_by_piece_give_the_text_of_all(tokens, cuts):
    tokenizer = byte_tokenizer()
    decoder, pieces, start = tokenizer.incremental_decoder(), [], 0
    while start < len(tokens):
        end = cuts.draw(st.integers(start + 1, len(tokens)))
        pieces.append(decoder.decode(tokens[start:end]))
        start = end
    pieces.append(decoder.decode([], final=True))
    data = b"".join(map(tokenizer.token_bytes, tokens))
    assert "".join(pieces) == tokenizer.decode(tokens) == data.decode("utf-8", "replace")


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("surrogate", ["\udcff", "\ud83d"])
def test_a_lone_surrogate_is_refused_before_it_is_learned(make, surrogate, tmp_path):
    tokenizer = make()
    with pytest.raises(InputError, match=rf"U\+{ord(surrogate):04X} at position 2, half of a surrogate pair"):
        tokenizer.train(["whole", f"ab{surrogate}"])
    tokenizer.train(TEXT)
    with pytest.raises(InputError, match=rf"U\+{ord(surrogate):04X} at position 1, half of a surrogate pair"):
        tokenizer.encode(f"a{surrogate}")
    tokenizer.save(tmp_path / "tokenizer.json")


def test_a_lone_surrogate_in_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"U\+D83D at position 2"):
        BPETokenizer(300, ["<|\ud83d|>"])
    for make, name in ((CharacterTokenizer, "vocabulary"), (lambda: BPETokenizer(300, ["a|"]), "special_tokens")):
        tokenizer = trained(make)
        content = {**json.loads(saved(tokenizer, tmp_path)), name: ["\ud83d"]}
        (tmp_path / "edited.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"edited\.json: the text holds U\+D83D"):
            load_tokenizer(tmp_path / "edited.json")


def saved(tokenizer, directory):
    tokenizer.save(directory / "tokenizer.json")
    return (directory / "tokenizer.json").read_text(encoding="utf-8")


def test_bpe_merges_equal_the_textbook_algorithm():
    generator = random.Random(1)
    words = ["".join(generator.choice("abcd") for _ in range(generator.randint(1, 9))) for _ in range(300)]
    counts = count_words(words)
    assert learn_merges(counts, 60) == _textbook_merges(counts, 60)


# Few letters in long words: equal neighbours, chains of equal tokens, and pairs that meet
# themselves.
LONG_WORDS = st.lists(st.text("aab", max_size=150) | st.text("abcdé", max_size=60), max_size=8)


@settings(deadline=None, max_examples=150)
@given(words=LONG_WORDS, repeated=st.integers(1, 3), num_merges=st.integers(0, 40))
def test_bpe_merges_equal_the_textbook_algorithm_whatever_the_words(words, repeated, num_merges):
    counts = count_words(words * repeated)
    assert learn_merges(counts, num_merges) == _textbook_merges(counts, num_merges)


@settings(deadline=None, max_examples=150)
@given(words=LONG_WORDS, text=st.text("aab", max_size=400) | st.text("abcdé", max_size=200))
def test_bpe_encodes_long_and_short_pieces_alike(words, text):
    tokenizer = BPETokenizer(300)
    tokenizer._set(learn_merges(count_words(words), 44))
    word = list(text.encode())
    for index, pair in enumerate(tokenizer.merges):
        word = _merge(word, pair, 256 + index)
    assert tokenizer._merge_short(text.encode()) == tokenizer._merge_long(text.encode()) == word


@pytest.mark.parametrize("letters", ["ACGT", "a"])
def test_bpe_time_on_a_word_without_blanks_is_linear(letters, monkeypatch):
    visited = 0
    join = TokenCells.join

    def counting(self, pair, new, places):
        nonlocal visited
        visited += len(places)
        return join(self, pair, new, places)

    monkeypatch.setattr(TokenCells, "join", counting)
    text = "".join(random.Random(3).choices(letters, k=100_000))
    tokenizer = BPETokenizer(1000)
    for work in (lambda: tokenizer.train(text), lambda: tokenizer.encode(text)):
        work()
        # A place for each pair of bytes, and two for each pair that is joined, of which there are
        # fewer than bytes.
        assert len(text) // 2 < visited < 3 * len(text)
        visited = 0
    assert tokenizer.decode(tokenizer.encode(text)) == text


def _textbook_merges(word_counts, num_merges):
    words = {tuple(word): count for word, count in word_counts}
    merges = []
    for new in range(256, 256 + num_merges):
        pairs = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        pair, count = min(pairs.items(), key=lambda item: (-item[1], item[0]), default=((0, 0), 0))
        if count < 2:
            break
        merges.append(pair)
        words = {tuple(_merge(list(word), pair, new)): count for word, count in words.items()}
    return merges


def _merge(word, pair, new):
    position = 0
    while position + 1 < len(word):
        if (word[position], word[position + 1]) == pair:
            word[position : position + 2] = [new]
        position += 1
    return word


def test_bpe_encoding_applies_merges_in_order():
    tokenizer = BPETokenizer(600)
    tokenizer.train(TEXT)
    fresh = BPETokenizer.from_dict(tokenizer.to_dict())  # nothing remembered
    expected = []
    for piece in PIECE.findall(TEXT):
        word = list(piece.encode())
        for index, pair in enumerate(tokenizer.merges):
            word = _merge(word, pair, 256 + index)
        expected += word
    assert fresh.encode(TEXT) == expected


def test_special_tokens():
    tokenizer = BPETokenizer(300, ["<|end|>", "<|end|>more"])
    tokenizer.train("low lower lowest<|end|>low low")
    tokens = tokenizer.encode("low<|end|>more low<|end|>")
    assert tokens.count(tokenizer.vocab_size - 1) == 1
    assert tokens[-1] == tokenizer.vocab_size - 2
    assert tokenizer.decode(tokens) == "low<|end|>more low<|end|>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not a tokenizer file"),
        ({"version": 2}, "version 2"),
        ({"kind": "magic"}, "unknown kind"),
        ({"kind": ["bpe"]}, "unknown kind"),
        ({"merges": [[0, 256]]}, "merge 0"),
        ({"merges": [[True, 1]]}, "merge 0"),
        ({"merges": [[1, 2], [1, 2]]}, "twice"),
        ({"merges": [[97, 97]] + [[256 + i, 256 + i] for i in range(40)]}, "bytes"),
        ({"merges": 5}, "merges"),
        ({"vocab_size": 3}, "vocab_size"),
        ({"special_tokens": [""]}, "special"),
        ({"special_tokens": None}, "damaged"),
    ],
)
def test_edited_file_is_refused(change, message, tmp_path):
    tokenizer = BPETokenizer(300)
    tokenizer.train(TEXT)
    tokenizer.save(tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | change), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_wrong_kind_is_named(tmp_path):
    _abc().save(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="holds a character tokenizer, not a bpe"):
        BPETokenizer.load(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("size", [0, 1, True, 2.5, 1 << 40])
def test_impossible_vocabulary_sizes(size):
    with pytest.raises(InputError, match="max_vocab_size"):
        WordTokenizer(max_vocab_size=size)
    with pytest.raises(InputError, match="vocab_size"):
        BPETokenizer(vocab_size=size)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("terminal", [Terminal, io.StringIO])
@pytest.mark.parametrize("progress", [False, True])
def test_progress_bars_need_a_terminal_and_a_request(progress, terminal, monkeypatch):
    monkeypatch.setattr("sys.stderr", shown := terminal())
    tokenizer = BPETokenizer(300)
    tokenizer.train(TEXT, progress)
    encode_texts(tokenizer, [TEXT], progress=progress)
    expected = progress and terminal is Terminal
    assert [bar in shown.getvalue() for bar in ("learning tokens", "encoding")] == [expected] * 2
