"""The page docs/following_the_data.md is true: its functions exist where it says, a token passes
the files that it names and no others, and a weight arrives in the circuit's memory.
"""

import ast
import re
import sys

import numpy as np
import pytest
from amaranth.back import rtlil
from test_docs import ROOT

from fixedpoint.generation import generate_text
from fixedpoint.quantization.calibration import QuantizationSettings, calibrate
from fixedpoint.quantization.quantize import quantize_transformer
from hdl.decoder.attention import Attention
from model import BPETokenizer, ModelConfig, Transformer

PAGE = ROOT / "docs" / "following_the_data.md"
FUNCTION = re.compile(r"\[`(?P<name>[^`]+)`\]\(\.\./(?P<file>[^)]+\.py)\)")
WEIGHT, FAST, SPECIFICATION, CIRCUIT = range(4)
MOST_FILES = 12
# What a token's path uses everywhere: checks of arguments, ranges of formats.
EVERYWHERE = {
    "model/threads.py",
    "fixedpoint/checks.py",
    "fixedpoint/qformat.py",
    "model/checks.py",
    "model/tokenizers/tokenizer.py",
}
TEXT = "the cat sat on the mat. the dog sat on the cat.\n" * 20


def tables() -> list[list[tuple[str, str]]]:
    """Return for each table of the page its functions and their files."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [[(match["name"], match["file"]) for match in FUNCTION.finditer(block)] for block in blocks]


def files(table: int) -> set[str]:
    return {file for _, file in tables()[table]}


def definitions(source: str) -> set[str]:
    """Return the names of a module's functions and classes, and of its classes' methods."""
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            inner = node.body if isinstance(node, ast.ClassDef) else []
            found |= {f"{node.name}.{one.name}" for one in inner if isinstance(one, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("table", range(4))
def test_functions_are_where_the_page_says(table):
    named = tables()[table]
    assert len(named) >= 8
    commands = FUNCTION.findall(PAGE.read_text(encoding="utf-8"))
    for name, file in {*named, *commands}:
        assert name in definitions((ROOT / file).read_text(encoding="utf-8")), f"{file} has no {name}"


def test_no_table_names_more_than_twelve_files():
    assert len(tables()) == 4
    assert all(len(files(table)) <= MOST_FILES for table in range(4))


@pytest.fixture(scope="module")
def model():
    tokenizer = BPETokenizer(270)
    tokenizer.train(TEXT)
    sizes = {"embed_dim": 16, "num_heads": 2, "num_layers": 1, "max_seq_len": 8}
    return tokenizer, Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, **sizes), seed=1)


def quantized(model, **settings):
    tokenizer, transformer = model
    windows = np.array(tokenizer.encode(TEXT)[:80]).reshape(10, 8)
    chosen = QuantizationSettings(**settings)
    return quantize_transformer(transformer, calibrate(transformer, windows, chosen), chosen)


def files_entered(function, *arguments, **options) -> set[str]:
    """Return the files of model and specification that have a function called while one runs."""
    entered = set()
    folders = tuple(f"{ROOT / package}/" for package in ("model", "fixedpoint"))

    def note(frame, event, argument):
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(folders):
            entered.add(file.removeprefix(f"{ROOT}/"))

    sys.setprofile(note)
    try:
        function(*arguments, **options)
    finally:
        sys.setprofile(None)
    return entered - EVERYWHERE


def test_a_token_passes_these_files_to_logits_and_to_the_next_token(model):
    tokenizer, _ = model
    specification = quantized(model)
    generate_text(specification, tokenizer, "the", 1)  # prepares the weights and tables
    entered = files_entered(generate_text, specification, tokenizer, "the cat", 4)
    # These two are asked for the sizes of context and vocabulary alone.
    sizes = {"fixedpoint/transformer.py", "fixedpoint/operators/linear.py"}
    assert entered - sizes == files(FAST) - {"scripts/commands/generate.py"}


def test_a_token_passes_these_files_of_the_specification(model):
    specification = quantized(model)
    tokens = np.array([[1, 2, 3]])
    specification.forward(tokens)
    generation = {"fixedpoint/generation.py"}
    assert files_entered(specification.forward, tokens) == files(SPECIFICATION) - generation


@pytest.mark.parametrize("layer", ["key", "output"])
def test_a_weight_is_in_the_memory_of_the_circuit(model, layer):
    """The page's program ends at the memory's words; these are its words in what Yosys reads."""
    attention = quantized(model, weight_bits=4, rounding="nearest").blocks[0].attention
    circuit = rtlil.convert(Attention(attention), emit_src=False)
    content = re.search(r'MEMID "\\\\bank_0".*?DATA (\d+)\'([01]+)', circuit, re.DOTALL)
    channels, weight = attention.embed_dim, getattr(attention, layer).weight
    first = channels * ("query", "key", "value", "output").index(layer)
    bits = content[2][::-1]  # the first word's lowest bit first
    assert int(content[1]) == len(bits) >= 4 * channels * channels * 4
    for row in (0, 3, channels - 1):
        for column in (0, 5, channels - 1):
            set_of_two, upper = divmod(first + row, 2)
            place = (set_of_two * channels + column) * 8 + upper * 4
            assert int(bits[place : place + 4][::-1], 2) == weight[row, column] % 16
