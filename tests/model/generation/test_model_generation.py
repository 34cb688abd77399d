"""Generation: the cache changes nothing, options do what they say."""

import numpy as np
import pytest

from model.errors import InputError
from model.generation import generate as generation
from model.generation.cached_decoder import CachedDecoder
from model.generation.generate import generate, generate_batch, generate_text
from model.generation.loop import context_start, stream
from model.generation.sampling import Sampling
from model.tokenizers.bpe import BPETokenizer
from model.tokenizers.character import CharacterTokenizer
from model.transformer import Transformer

VARIANTS = [
    {},
    {"position": "sinusoidal", "norm": "rms", "activation": "swiglu", "use_bias": False},
    {"position": "rotary", "num_kv_heads": 2, "tie_embeddings": True},
    {"activation": "relu_squared", "num_kv_heads": 1},
]


def make(changes=None, seed=0):
    sizes = {"vocab_size": 13, "embed_dim": 16, "num_heads": 4, "num_layers": 2, "max_seq_len": 12}
    model = Transformer({**sizes, **(changes or {})}, seed=seed)
    generator = np.random.default_rng(seed)
    model.parameters.flat[:] += (0.2 * generator.standard_normal(model.parameters.flat.size)).astype(np.float32)
    return model


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_cached_logits_equal_the_whole_forward_pass(changes):
    model = make(changes)
    tokens = np.random.default_rng(1).integers(0, 13, (3, 12))
    expected = model.forward(tokens)
    decoder = CachedDecoder(model, 3)
    np.testing.assert_allclose(decoder.prefill(tokens[:, :5]), expected[:, 4], atol=2e-5)
    for position in range(5, 12):
        np.testing.assert_allclose(decoder.step(tokens[:, position]), expected[:, position], atol=2e-5)
    with pytest.raises(ValueError, match="full"):
        decoder.step(tokens[:, 0])


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_cache_gives_the_same_tokens(changes, temperature):
    model = make(changes)
    options = {"temperature": temperature, "seed": 4}
    with_cache = generate(model, [1, 2], 40, **options)
    assert with_cache == generate(model, [1, 2], 40, use_cache=False, **options)
    assert len(with_cache) == 40
    if temperature:
        assert len(set(with_cache)) > 3


def test_sequences_of_a_batch_do_not_depend_on_each_other():
    model = make()
    prompts = [[1], [2, 3, 4, 5, 6], [7, 8]]
    together = generate_batch(model, prompts, 30, seed=9)
    assert [len(tokens) for tokens in together] == [30, 30, 30]
    assert together == generate_batch(model, prompts, 30, seed=9, use_cache=False)
    assert together[0] == generate(model, prompts[0], 30, seed=9)


def test_decoder_can_be_used_again():
    model = make()
    decoder = CachedDecoder(model, 2)
    expected = generate_batch(model, [[1], [2, 3]], 20, seed=5)
    for _ in range(2):
        assert generate_batch(model, [[1], [2, 3]], 20, seed=5, decoder=decoder) == expected
    with pytest.raises(InputError, match="for 2 sequences, not 1"):
        generate_batch(model, [[1]], 20, decoder=decoder)
    with pytest.raises(InputError, match="no prompt"):
        generate_batch(model, [], 20)


class Recorder:
    """A decoder that keeps each context that logits were asked for; the logits are zeros."""

    def __init__(self):
        self.contexts = []

    def prefill(self, tokens):
        self.contexts.append(tokens[0].tolist())
        return np.zeros((1, 1))

    def step(self, tokens):
        self.contexts.append(self.contexts[-1] + tokens.tolist())
        return np.zeros((1, 1))


@pytest.mark.parametrize("limit", [1, 2, 3, 8])
def test_a_full_context_begins_anew_with_its_newer_half(limit):
    kept, context = max(1, limit // 2), []
    for length in range(1, 40):  # the tokens are 0, 1, 2, … and come one by one
        context = [*context, length - 1] if len(context) < limit else list(range(length - kept, length))
        assert context == list(range(context_start(length, limit), length))
    for prompt in (1, limit, 2 * limit + 1):
        recorder, sequence = Recorder(), list(range(prompt))
        positions = stream(recorder, lambda logits, rows, contexts: [contexts[0][-1] + 1], [sequence], limit)
        for _ in range(20):
            next(positions)
        expected = [list(range(context_start(length, limit), length)) for length in range(prompt, prompt + 20)]
        assert recorder.contexts == expected


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_prompts_longer_than_the_context(limit):
    model = make({"max_seq_len": limit})
    prompts = [[1], list(range(2 * limit + 2))]
    tokens = generate_batch(model, prompts, 4 * limit, seed=3)
    assert tokens == generate_batch(model, prompts, 4 * limit, seed=3, use_cache=False)
    assert tokens[0] == generate(model, prompts[0], 4 * limit, seed=3)


def test_greedy_takes_the_most_likely():
    model = make()
    tokens = [3]
    for _ in range(8):
        tokens.append(int(model.forward(np.array([tokens]))[0, -1].argmax()))
    assert generate(model, [3], 8, temperature=0) == tokens[1:]
    assert generate(model, [3], 8, top_k=1) == tokens[1:]


def frequencies(sampling, logits, context=()):
    draws = (np.arange(4000) + 0.5) / 4000  # evenly over [0, 1)
    chosen = [sampling.choose(logits, draw, context) for draw in draws]
    return np.bincount(chosen, minlength=len(logits)) / len(draws)


def test_sampling_follows_the_probabilities():
    logits = np.log(np.array([0.5, 0.2, 0.2, 0.1], np.float32))
    np.testing.assert_allclose(frequencies(Sampling(), logits), [0.5, 0.2, 0.2, 0.1], atol=1e-3)
    np.testing.assert_allclose(frequencies(Sampling(top_k=1), logits), [1, 0, 0, 0])
    np.testing.assert_allclose(frequencies(Sampling(top_k=3), logits), np.array([5, 2, 2, 0]) / 9, atol=1e-3)
    np.testing.assert_allclose(frequencies(Sampling(top_p=0.69), logits), np.array([5, 2, 0, 0]) / 7, atol=1e-3)
    np.testing.assert_allclose(frequencies(Sampling(top_p=1.0), logits), [0.5, 0.2, 0.2, 0.1], atol=1e-3)
    hot = np.array([0.5, 0.2, 0.2, 0.1]) ** 0.5
    np.testing.assert_allclose(frequencies(Sampling(temperature=2), logits), hot / hot.sum(), atol=1e-3)


def test_rows_are_sampled_like_single_ones():
    generator = np.random.default_rng(0)
    logits, random = generator.normal(0, 3, (200, 13)).astype(np.float32), generator.random(200)
    for sampling in (Sampling(0.7), Sampling(), Sampling(top_k=3), Sampling(0)):
        expected = [sampling.choose(row, number, ()) for row, number in zip(logits, random, strict=True)]
        assert sampling.choose_rows(logits, random, [()] * 200) == expected


def test_repetition_penalty():
    logits = np.array([2.0, -1.0, 0.5], np.float32)
    expected = np.exp([1.0, -2.0, 0.5])
    penalised = frequencies(Sampling(repetition_penalty=2), logits, [0, 1, 0])
    np.testing.assert_allclose(penalised, expected / expected.sum(), atol=1e-3)
    assert logits.tolist() == [2.0, -1.0, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(InputError, match=message):
        generate(make(), [1], 3, **options)


def test_impossible_prompts():
    with pytest.raises(InputError, match="empty"):
        generate(make(), [], 3)
    with pytest.raises(InputError, match="token 13 is outside"):
        generate(make(), [13], 3)
    with pytest.raises(InputError, match="0 or more"):
        generate(make(), [1], -1)
    assert generate(make(), [1], 0) == []


def text_setup():
    tokenizer = CharacterTokenizer()
    tokenizer.train("abcdefghijk\n.")
    return make(), tokenizer


def test_text_is_streamed_as_it_is_returned():
    model, tokenizer = text_setup()
    pieces = []
    text = generate_text(model, tokenizer, "abc", 50, seed=2, on_text=pieces.append)
    assert "".join(pieces) == text
    assert len(text) == 50
    assert len(pieces) == 50


def test_stop_text_is_neither_returned_nor_shown():
    model, tokenizer = text_setup()
    text = generate_text(model, tokenizer, "abc", 60, seed=2)
    stop = text[20:23]
    pieces = []
    stopped = generate_text(model, tokenizer, "abc", 60, seed=2, stop=[stop, "zz"], on_text=pieces.append)
    assert stopped == "".join(pieces) == text[: text.index(stop)]
    with pytest.raises(InputError, match="stop"):
        generate_text(model, tokenizer, "abc", 5, stop=[""])


def test_characters_of_several_bytes_are_streamed_whole():
    tokenizer = BPETokenizer(256)
    tokenizer.train("ab")
    model = make({"vocab_size": 256})
    pieces = []
    text = generate_text(model, tokenizer, "é", 60, seed=1, on_text=pieces.append)
    assert "".join(pieces) == text


def forced(tokens):
    """Return what takes `stream_batch`'s place and makes these tokens."""

    def stream(model, sequences, *arguments, **options):
        for token in tokens:
            sequences[0].append(token)
            yield

    return stream


def test_a_stray_byte_does_not_damage_the_next_character(monkeypatch):
    tokenizer = BPETokenizer(256)
    tokenizer.train("ab")
    model, tokens, pieces = make({"vocab_size": 256}), [0x80, 0xF0, 0x9F, 0x98, 0x80, 0x6F, 0x6B, 0xE6], []
    monkeypatch.setattr(generation, "stream_batch", forced(tokens))
    text = generate_text(model, tokenizer, "a", len(tokens), on_text=pieces.append)
    assert text == tokenizer.decode(tokens) == "\ufffd😀ok\ufffd"
    assert pieces == ["\ufffd", "😀", "o", "k", "\ufffd"]
    assert generate_text(model, tokenizer, "a", len(tokens), stop=["\ufffd"]) == ""
    assert generate_text(model, tokenizer, "a", len(tokens), stop=["k\ufffd"]) == "\ufffd😀o"


def test_prompt_can_be_empty_and_must_be_known():
    model, tokenizer = text_setup()
    assert len(generate_text(model, tokenizer, "", 5)) == 5
    with pytest.raises(InputError, match="unknown character: 'Z'"):
        generate_text(model, tokenizer, "aZ", 5)
    other = CharacterTokenizer()
    other.train("abcdefghijklmnopqrstuvwxyz")
    with pytest.raises(InputError, match="belong together"):
        generate_text(model, other, "a", 5)
