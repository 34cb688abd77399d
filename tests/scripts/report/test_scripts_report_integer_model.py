"""The page's JavaScript without a browser: the specification's tensors, tokens and tokenizers."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from model_kinds import KINDS

from fixedpoint.generation import generate_batch
from model.tokenizers import gpt2, word
from model.tokenizers.bpe import BPETokenizer
from model.tokenizers.character import CharacterTokenizer
from model.tokenizers.gpt2 import GPT2Tokenizer
from model.tokenizers.llama2c import BYTE_PIECES, Llama2cTokenizer
from model.tokenizers.word import WordTokenizer
from scripts.report.interactive import source
from scripts.report.page_model import page_model

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="no node: apt-get install nodejs")

TEXT = "It’s the cats' house, they've 12 mice; it isn't ½ of naïve 日本 _x_!\n\n \tthe  the cats\x1c\x85the\xa0end €\ufeff𝄞 "
MODELS = """
const answer = cases.map(({ packed, prompts, count, temperature, seed }) => {
  const model = new IntegerModel(packed);
  return prompts.map((prompt, sequence) => {
    const tokens = [...prompt], stream = model.stream(tokens, temperature, seed, sequence);
    stream.next();
    const tensors = model.operations.map(({ name, y }) => [name, Array.from(y)]);
    for (let made = 1; made < count; made++) stream.next();
    return { tokens: tokens.slice(prompt.length), tensors };
  });
});
"""
TOKENS = """
const answer = cases.map(({ content, texts, tokens }) => {
  const tokenizer = makeTokenizer(content);
  const decoded = tokens.map((some) => {
    const decoder = new TokenDecoder(tokenizer, undefined);
    return some.map((token) => decoder.decode(token)).join("") + decoder.end();
  });
  return { encoded: texts.map((text) => tokenizer.encode(text)), decoded, beginning: tokenizer.beginning() };
});
"""


def run_javascript(script, cases):
    """Run a script after the page's own; return its `answer`."""
    program = source("integer_model.js", "tokenizers.js")
    program += f'const cases = JSON.parse(require("fs").readFileSync(0, "utf8"));\n{script}\n'
    program += "process.stdout.write(JSON.stringify(answer));"
    command = [str(NODE), "--eval", program]
    result = subprocess.run(command, input=json.dumps(cases), capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_every_kind_of_model_gives_the_tensors_and_tokens_of_the_specification():
    tokenizer = CharacterTokenizer()
    tokenizer.train("ab")
    cases, expected = [], []
    for seed, make in enumerate(KINDS.values()):
        quantized = make(seed)
        context = quantized.context_length
        random = np.random.default_rng(seed)
        prompts = [random.integers(0, quantized.vocab_size, size=length).tolist() for length in (context, 1)]
        # a high temperature, so that different tokens come; the last one's scores exceed 2**53
        temperature = (0, 0.75, 5000.0, 1e-6)[seed % 4]
        settings = {"temperature": temperature, "seed": 2**32 - 1 - seed}
        count = 2 * context
        cases.append({"packed": page_model(quantized, tokenizer), "prompts": prompts, "count": count, **settings})
        tokens = generate_batch(quantized, prompts, count, **settings)
        tensors = []
        for prompt in prompts:
            found = []
            quantized.forward(np.array([prompt]), lambda name, x, found=found: found.append([name, x[0, -1].tolist()]))
            tensors.append(found)
        expected.append([{"tokens": a, "tensors": b} for a, b in zip(tokens, tensors, strict=True)])
    for name, case, got, wanted in zip(KINDS, cases, run_javascript(MODELS, cases), expected, strict=True):
        assert got == wanted, (name, case["temperature"])


def tokenizers():
    character, word, pairs = CharacterTokenizer(), WordTokenizer(12), BPETokenizer(290, ["<|endoftext|>", "<|end|>"])
    for tokenizer in (character, word, pairs):
        tokenizer.train(TEXT + "the cats and the mice " * 3)
    content = pairs.to_dict()
    numbers = np.random.default_rng(1).permutation(pairs.vocab_size).tolist()
    pieces = ["<unk>", "<s>", "</s>", *BYTE_PIECES, " ", "t", "h", "e", "th", "he", " th", " the", "the", "c", " c"]
    scores = [-abs(5.0 - index % 7) for index in range(len(pieces))]
    return [
        character,
        word,
        pairs,
        GPT2Tokenizer.from_dict({**content, "numbers": numbers}),
        Llama2cTokenizer(pieces, scores),
    ]


def test_every_tokenizer_encodes_and_decodes_as_python_does():
    cases, expected = [], []
    random = np.random.default_rng(2)
    texts = [TEXT, TEXT[::-1], " the", "\n"]
    for tokenizer in tokenizers():
        special = ["a<|endoftext|>the<|end|>"] if tokenizer.special_tokens else []
        tokens = [random.integers(0, tokenizer.vocab_size, size=60).tolist() for _ in range(8)]
        cases.append(
            {"content": {"kind": tokenizer.kind, **tokenizer.to_dict()}, "texts": texts + special, "tokens": tokens}
        )
        encoded = [tokenizer.encode(text) for text in texts + special]
        decoded = [tokenizer.decode(some) for some in tokens]
        expected.append({"encoded": encoded, "decoded": decoded, "beginning": tokenizer.beginning()})
    for case, got, wanted in zip(cases, run_javascript(TOKENS, cases), expected, strict=True):
        assert got == wanted, case["content"]["kind"]


def test_pieces_of_all_characters_are_those_of_python():
    """Letters, numbers and white space of every plane, where Python and node know them alike."""
    pairs = BPETokenizer(256)
    pairs.train("a")
    every = "".join(chr(code) for code in range(0x3100) if chr(code).isprintable() or chr(code).isspace())
    script = (
        "const answer = cases.map((text) => [text.match(BPE_PIECE), text.match(GPT2_PIECE), text.match(WORD_PIECE)]);"
    )
    texts = [every, " ".join(every)]
    expected = [[pairs._pieces(text), gpt2.piece_pattern().findall(text), word.PIECE.findall(text)] for text in texts]
    assert run_javascript(script, texts) == expected
