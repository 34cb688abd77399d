"""Generation in integers: the specification's operators, fast evaluation and the C program make
the same tokens.
"""

from collections import deque
from pathlib import Path

import numpy as np
import pytest
from model_kinds import KINDS, make_model
from stories260k import MODEL, needs_stories260k
from test_fixedpoint_native import needs_compiler, random_prompts

from fixedpoint import Sampler, generation, load_export
from fixedpoint.errors import QuantizationError
from fixedpoint.export.c_program import NativeTransformer
from fixedpoint.fast.transformer import FastDecoder
from fixedpoint.generation import generate_batch, generate_text
from fixedpoint.operators.sampling import XorShift32, mix
from fixedpoint.quantization.calibration import QuantizationSettings, calibrate
from fixedpoint.quantization.quantize import quantize_transformer
from model.errors import InputError
from model.formats.llama2c import load_llama2c
from model.generation.generate import generate_batch as generate_floats
from model.generation.sampling import Sampling
from model.run import RunDirectory
from model.tokenizers.bpe import BPETokenizer


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_with_and_without_cache(kind, temperature):
    """Prompts from one token to twice the context together, and contexts that move on several
    times.
    """
    model = KINDS[kind](0)
    prompts = random_prompts(model, 5, seed=2)
    options = {"temperature": temperature, "seed": 7}
    tokens = generate_batch(model, prompts, 20, **options)
    assert tokens == generate_batch(model, prompts, 20, use_cache=False, **options)
    assert all(len(row) == 20 and 0 <= min(row) <= max(row) < model.vocab_size for row in tokens)
    # alone: one row instead of a batch
    assert [generate_batch(model, prompts[:1], 20, **options)[0]] == tokens[:1]


@needs_compiler
def test_the_c_program_makes_the_same_tokens(tmp_path):
    model = make_model(3, weight_bits=4, context_length=12)
    program = NativeTransformer.build(model, tmp_path / "c")
    prompts = random_prompts(model, 20, seed=3)
    check_three_ways(model, program, prompts, 16)


@needs_compiler
@needs_stories260k
def test_greedy_text_of_a_public_llama(tmp_path):
    """200 tokens from the beginning of a text. Integers write what floats write until the float
    model itself finds two tokens almost equally likely.
    """
    exact, settings = load_llama2c(MODEL), QuantizationSettings(activation_bits=10)
    begun = [[1]] * 16
    samples = np.array([[1, *tokens] for tokens in generate_floats(exact, begun, 127, seed=5)])
    model = quantize_transformer(exact, calibrate(exact, samples, settings), settings)
    tokens = TokenMachine(model).generate([1], 200, Sampler(model.logits.output, 0.0), 1)
    assert generate_batch(model, [[1]], 200, temperature=0) == [tokens]
    assert generate_batch(model, begun[:2], 200, temperature=0) == [tokens, tokens]
    assert NativeTransformer.build(model, tmp_path / "c").generate([[1]], 200) == [tokens]
    floats = generate_floats(exact, [[1]], 200, sampling=Sampling(0))[0]
    common = next((i for i, pair in enumerate(zip(tokens, floats, strict=True)) if pair[0] != pair[1]), 200)
    assert common > 10
    if common < 200:
        logits = exact.forward(np.array([[1, *tokens[:common]]]))[0, -1]
        assert 0 <= logits[floats[common]] - logits[tokens[common]] < 0.5


class TokenMachine:
    """What a circuit can do: it takes one token at a time, adds its key and value to a memory of T
    positions, and remembers the last K tokens, with which it begins anew when that memory is full.
    """

    def __init__(self, model):
        self.model, self.kept, self.cache, self.fed = model, max(1, model.context_length // 2), None, 0
        self.recent = deque(maxlen=self.kept)

    def step(self, token):
        """Return the logits after a token."""
        self.recent.append(token)
        tokens = [token]
        if self.fed % self.model.context_length == 0:
            self.cache, tokens = self.model.empty_cache(1), list(self.recent)
            self.fed = 0
        for one in tokens:
            logits, self.cache = self.model.extend([[one]], self.cache)
        self.fed += len(tokens)
        return logits[0, -1]

    def generate(self, prompt, num_tokens, sampler, state):
        """Return the tokens that continue a prompt, with the random numbers of `state`."""
        random, made = XorShift32([state]), []
        for token in prompt:
            logits = self.step(token)
        for index in range(num_tokens):
            logits = self.step(made[-1]) if index else logits
            made.append(int(sampler.choose(logits[None], random.next())[0]))
        return made


@needs_compiler
@pytest.mark.parametrize("context_length", [1, 2, 3, 4, 9])
def test_full_contexts_give_the_same_tokens_everywhere(context_length, tmp_path):
    """Prompts up to three contexts long and new contexts several times: the specification, fast
    evaluation, the C program, and a machine without any other memory than a circuit's.
    """
    model = make_model(10 + context_length, context_length=context_length)
    program = NativeTransformer.build(model, tmp_path / "c", ("-O1",))
    generator = np.random.default_rng(context_length)
    prompts = [generator.integers(0, model.vocab_size, size).tolist() for size in range(1, 3 * context_length + 2)]
    check_three_ways(model, program, prompts, 3 * context_length + 4)
    sampler = Sampler(model.logits.output, 0.8)
    expected = generate_batch(model, prompts, 3 * context_length + 4, temperature=0.8, seed=5)
    for index, (prompt, tokens) in enumerate(zip(prompts, expected, strict=True)):
        assert TokenMachine(model).generate(prompt, len(tokens), sampler, mix(5, index)) == tokens


def check_three_ways(model, program, prompts, num_tokens):
    """Compare greedy and sampled tokens of the batched operators, fast evaluation of one sequence
    and of several, and the C program.
    """
    for temperature, seed in ((0.0, 0), (0.8, 12345)):
        options = {"temperature": temperature, "seed": seed}
        batched = generate_batch(model, prompts, num_tokens, use_cache=False, **options)
        assert generate_batch(model, prompts, num_tokens, **options) == batched
        assert program.generate(prompts, num_tokens, **options) == batched
        assert generate_batch(model, prompts[:1], num_tokens, **options) == batched[:1]
        if temperature == 0:
            decoder = FastDecoder(model)
            alone = [generate_batch(model, [prompt], num_tokens, decoder=decoder, **options)[0] for prompt in prompts]
            assert alone == batched
        assert len({tuple(row) for row in batched}) > 1


@pytest.mark.campaign
@needs_compiler
@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (1000, {"weight_bits": 4, "num_layers": 2, "channels": 64, "hidden": 256}),
        (60, {"weight_bits": 8, "num_layers": 4, "channels": 128, "hidden": 512}),
        (60, {"weight_bits": "ternary", "activation_bits": 6, "num_layers": 4, "channels": 128, "hidden": 512}),
    ],
    ids=str,
)
def test_a_thousand_prompts_three_ways(tmp_path, count, sizes):
    """64 tokens of context, prompts of 1 to 96 tokens, 64 more of each."""
    model = make_model(count, num_heads=4, context_length=64, vocab_size=65, **sizes)
    program = NativeTransformer.build(model, tmp_path / "c")
    prompts = sorted(
        random_prompts(model, count, seed=count, longest=96), key=len
    )  # those of a group are about as long
    for start in range(0, count, 50):
        check_three_ways(model, program, prompts[start : start + 50], 64)


def test_a_sequence_depends_on_its_prompt_its_index_and_the_seed_alone():
    model = make_model(0)
    prompts = [[1, 2, 3], [4], [5] * 9]
    tokens = generate_batch(model, prompts, 12, temperature=1.0, seed=3)
    others = generate_batch(model, [[6] * 5, [4], [7]], 12, temperature=1.0, seed=3)
    assert others[1] == tokens[1]
    assert generate_batch(model, [[4], [4]], 12, temperature=1.0, seed=3)[1] == tokens[1]
    assert generate_batch(model, [[4], [4]], 12, temperature=1.0, seed=3)[0] != tokens[1]
    assert generate_batch(model, prompts, 12, temperature=1.0, seed=4) != tokens
    assert generate_batch(model, prompts, 5, temperature=1.0, seed=3) == [row[:5] for row in tokens]


def test_a_decoder_serves_many_calls():
    model = make_model(0)
    decoder = FastDecoder(model, 2)
    prompts = [[1, 2, 3], [4]]
    first = generate_batch(model, prompts, 12, decoder=decoder)
    assert generate_batch(model, prompts, 12, decoder=decoder) == first == generate_batch(model, prompts, 12)
    for wrong in ({"quantized": make_model(0), "prompts": prompts}, {"quantized": model, "prompts": [[1]]}):
        with pytest.raises(InputError, match="another model or for 2 sequences"):
            generate_batch(**wrong, num_tokens=1, decoder=decoder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "no prompt"),
        ({"prompts": [[1], []]}, "prompt is empty"),
        ({"prompts": [[11]]}, "prompt token 11 is outside the vocabulary of 11 tokens"),
        ({"prompts": [[-1]]}, "prompt token -1"),
        ({"num_tokens": -1}, "must be 0 or more, not -1"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 32}, "seed"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((InputError, QuantizationError), match=message):
        generate_batch(make_model(0), **{"prompts": [[1]], "num_tokens": 1, **arguments})


def test_no_tokens():
    assert generate_batch(make_model(0), [[1], [2]], 0) == [[], []]


# Text


@pytest.fixture(scope="module")
def trained(tiny_run_original):
    run = RunDirectory(Path(tiny_run_original))
    return load_export(run.quantized), run.load_tokenizer()


def test_text_is_the_decoded_tokens(trained):
    model, tokenizer = trained
    pieces = []
    text = generate_text(model, tokenizer, "The c", 40, temperature=0.7, seed=2, on_text=pieces.append)
    tokens = generate_batch(model, [tokenizer.encode("The c")], 40, temperature=0.7, seed=2)[0]
    assert text == tokenizer.decode(tokens) == "".join(pieces)
    assert len(pieces) == 40
    assert generate_text(model, tokenizer, "", 5) == tokenizer.decode(
        generate_batch(model, [tokenizer.encode("\n")], 5)[0]
    )
    assert generate_text(model, tokenizer, "The", 0) == ""


class BytesOfCharacters:
    """A tokenizer of four tokens: the two bytes of é, a letter, and a byte that is part of no
    character.
    """

    vocab_size = 4
    parts = (b"\xc3", b"\xa9", b"a", b"\xff")

    def encode(self, text):
        if text not in ("", "a"):
            raise ValueError("no such letter")
        return [2] * len(text)

    def beginning(self):
        return 0

    def incremental_decoder(self, previous):
        return self.Decoder()

    class Decoder:
        def __init__(self):
            self.pending = b""

        def decode(self, tokens, final=False):
            """Keep é's first byte until its second or something else comes."""
            data = self.pending + b"".join(BytesOfCharacters.parts[token] for token in tokens)
            self.pending = b"\xc3" if data.endswith(b"\xc3") and not final else b""
            return data.removesuffix(self.pending).decode(errors="replace")


def test_characters_are_shown_when_they_are_complete():
    model, tokenizer = make_model(0, vocab_size=4), BytesOfCharacters()
    for seed in range(20):
        pieces = []
        text = generate_text(model, tokenizer, "", 30, temperature=5.0, seed=seed, on_text=pieces.append)
        assert "".join(pieces) == text
        if "é" in text:
            assert any("é" in piece for piece in pieces)
            assert all(len(piece.encode()) > 1 or piece == "a" for piece in pieces)
            return
    raise AssertionError("no seed made an é")


def test_a_stray_byte_does_not_damage_the_next_character(monkeypatch):
    tokenizer = BPETokenizer(256)
    tokenizer.train("ab")
    tokens, pieces = [0x80, 0xF0, 0x9F, 0x98, 0x80, 0x6F, 0x6B, 0xE6], []

    def stream(quantized, sequences, **options):
        for token in tokens:
            sequences[0].append(token)
            yield

    monkeypatch.setattr(generation, "stream_batch", stream)
    text = generate_text(make_model(0, vocab_size=256), tokenizer, "a", len(tokens), on_text=pieces.append)
    assert text == tokenizer.decode(tokens) == "\ufffd😀ok\ufffd"
    assert pieces == ["\ufffd", "😀", "o", "k", "\ufffd"]


def test_a_tokenizer_of_another_model():
    with pytest.raises(InputError, match="4 tokens, the model 2"):
        generate_text(KINDS["one of everything"](0), BytesOfCharacters(), "a", 1)
    with pytest.raises(InputError, match="0 or more"):
        generate_text(make_model(0), BytesOfCharacters(), "a", -1)


@pytest.mark.parametrize("wrong", [[0.7], [True], np.array([1.0]), ["1"]])
def test_prompts_are_whole_numbers(wrong):
    with pytest.raises(InputError, match="not a whole number"):
        generate_batch(make_model(0), [wrong], 1)
    for num_tokens in (1.0, True):
        with pytest.raises(InputError, match="number of tokens"):
            generate_batch(make_model(0), [[1]], num_tokens)
