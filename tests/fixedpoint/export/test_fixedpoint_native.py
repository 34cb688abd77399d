"""The C program against the specification: the same logits and the same tokens, and clear words for
what it cannot do.
"""

import os
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from model_kinds import KINDS, make_model

from fixedpoint import QFormat, QuantizationError, Sampler, XorShift32
from fixedpoint.errors import CompilerError
from fixedpoint.export.c_program import COMPILERS, OPTIMIZED, NativeTransformer, find_compiler, write_program
from fixedpoint.operators.gumbel import gumbel_noise, random_words
from model.generation.loop import context_start

needs_compiler = pytest.mark.skipif(
    not os.environ.get("CC") and not any(map(shutil.which, COMPILERS)), reason="no C compiler"
)
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def at_the_rails(seed):
    """A model whose weights and biases are the largest that their formats allow."""
    model, generator = make_model(seed, activation_bits=8, num_layers=1), np.random.default_rng(seed)

    def extreme(layer):
        weight = generator.choice([-128, 127], size=layer.weight.shape, p=[0.8, 0.2])
        bias = generator.choice([-layer.bias_limit, layer.bias_limit], size=layer.rows)
        fraction = layer.weight_fraction + generator.integers(-2, 12, size=layer.rows)
        return replace(layer, weight=weight, bias=bias, weight_fraction=fraction)

    block = model.blocks[0]
    parts = {name: extreme(getattr(block.attention, name)) for name in ("query", "key", "value", "output")}
    block = replace(block, attention=replace(block.attention, **parts), up=extreme(block.up), down=extreme(block.down))
    return replace(model, blocks=(block,), logits=extreme(model.logits))


def with_scores(seed, fraction):
    """A model whose rows are shifted by every length, and scores with 2 * fraction - 1 fraction
    bits.
    """
    model, generator = make_model(seed, num_layers=1), np.random.default_rng(seed)

    def shifted(layer, output=None):
        output = output or layer.output
        shifts = generator.permutation(np.linspace(-28, 40, layer.rows).astype(np.int64))
        return replace(layer, output=output, weight_fraction=shifts + output.fraction - layer.input.fraction)

    attention, block = model.blocks[0].attention, model.blocks[0]
    attention = replace(
        attention,
        query=shifted(attention.query, QFormat(8, fraction)),
        key=shifted(attention.key, QFormat(8, fraction - 1)),
        value=shifted(attention.value),
    )
    block = replace(block, attention=attention, up=shifted(block.up))
    return replace(model, blocks=(block,))


MODELS = {
    **KINDS,
    "at the rails": at_the_rails,
    "coarse scores": lambda seed: with_scores(seed, -14),
    "fine scores": lambda seed: with_scores(seed, 20),
}
SANITIZED = (
    "at the rails",
    "coarse scores",
    "layer norm",
    "twelve-bit activations",
    "one of everything",
)  # which take longer to compile


@pytest.fixture(scope="session")
def sanitizers(tmp_path_factory):
    """Return the options that find undefined behaviour, or none where the compiler lacks their
    libraries.
    """
    probe = tmp_path_factory.mktemp("probe") / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    command = [*find_compiler(), *SANITIZERS, "-o", probe.with_suffix(""), probe]
    if subprocess.run(command, capture_output=True, check=False).returncode == 0:
        return SANITIZERS
    return ("-O1",)


@pytest.fixture(scope="module")
def built(tmp_path_factory, sanitizers):
    """Return a function from the name of a kind to its model and its program, compiled once."""
    programs = {}

    def get(kind):
        if kind not in programs:
            model = MODELS[kind](0)
            options = sanitizers if kind in SANITIZED else ("-O1",)
            programs[kind] = model, NativeTransformer.build(model, tmp_path_factory.mktemp("native") / "c", options)
        return programs[kind]

    return get


def reference_tokens(model, prompts, num_tokens, temperature, seed):
    """Generate with the specification's operators on the whole context, one sequence after the
    other.
    """
    sampler, limit = Sampler(model.logits.output, temperature), model.context_length
    results = []
    for index, prompt in enumerate(prompts):
        random, tokens = XorShift32.from_seed(seed, index + 1), list(prompt)
        random = XorShift32(random.state[index:])
        for _ in range(num_tokens):
            context = np.array([tokens[context_start(len(tokens), limit) :]])
            word = random.next() if temperature else np.zeros(1, dtype=np.uint32)
            tokens.append(int(sampler.choose(model.forward(context)[:, -1], word)[0]))
        results.append(tokens[len(prompt) :])
    return results


def random_prompts(model, count, seed, longest=None):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, (longest or 2 * model.context_length) + 1, size=count)
    return [generator.integers(0, model.vocab_size, size=length).tolist() for length in lengths]


# The same numbers


@needs_compiler
@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_the_specifications(built, kind):
    model, program = built(kind)
    seen = set()
    for prompt in [*random_prompts(model, 6, 1, model.context_length), [model.vocab_size - 1] * model.context_length]:
        expected = model.forward(np.array([prompt]))[0]
        np.testing.assert_array_equal(program.logits(prompt), expected)
        seen |= set(expected.ravel().tolist())
    assert len(seen) > 1  # not the same saturated logit everywhere


@needs_compiler
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
@pytest.mark.parametrize("kind", MODELS)
def test_tokens_are_the_specifications(built, kind, temperature):
    """Prompts shorter and longer than the context, and several moves of the context."""
    model, program = built(kind)
    prompts, count = random_prompts(model, 4, 2), 3 * model.context_length + 1
    expected = reference_tokens(model, prompts, count, temperature, seed=5)
    assert program.generate(prompts, count, temperature=temperature, seed=5) == expected


@needs_compiler
@pytest.mark.parametrize("kind", ["large heads", "ternary, rms norm"])
def test_vector_instructions_change_nothing(kind, tmp_path):
    model = MODELS[kind](3)
    program = NativeTransformer.build(model, tmp_path / "c", OPTIMIZED)
    for prompt in random_prompts(model, 5, 4, model.context_length):
        np.testing.assert_array_equal(program.logits(prompt), model.forward(np.array([prompt]))[0])
    prompts = random_prompts(model, 3, 5)
    assert program.generate(prompts, 20, temperature=0.9, seed=1) == reference_tokens(model, prompts, 20, 0.9, 1)


@needs_compiler
def test_every_temperature_and_seed_draws_the_same_tokens(built):
    model, program = built("large heads")
    prompts = random_prompts(model, 3, 6)
    generator = np.random.default_rng(7)
    temperatures = [1e-3, 0.01, 0.1, 0.25, 0.333333, 0.5, 2.0, 3.14, 10.0, 99.999999, 1000.0]
    temperatures += np.round(generator.uniform(0.2, 2.0, size=10), 6).tolist()
    drawn = set()
    for temperature in temperatures:
        seed = int(generator.integers(0, 1 << 32))
        tokens = program.generate(prompts, 4, temperature=temperature, seed=seed)
        assert tokens == reference_tokens(model, prompts, 4, temperature, seed), (temperature, seed)
        drawn.add(str(tokens))
    assert len(drawn) > 5  # the low temperatures agree on the likeliest tokens


def test_the_programs_multiplier_is_the_samplers_for_every_thousandth():
    """`make_sampler`, which divides whole numbers, repeated in Python's, against the sampler's
    float64.
    """
    for thousandths in range(1, 20_001):
        quotient = 12690079782337 * 10**6 // (thousandths * 1000)
        shorten = max(quotient.bit_length() - 16, 0)
        multiplier = (quotient + (1 << (shorten - 1))) >> shorten
        if multiplier == 1 << 16:
            multiplier, shorten = multiplier >> 1, shorten + 1
        sampler = Sampler(QFormat(16, 9), thousandths / 1000)
        assert (multiplier, 9 - 11 + 43 - shorten) == (sampler.multiplier, sampler.shift), thousandths


@needs_compiler
def test_the_programs_noise_is_the_specifications(tmp_path):
    """Words of all octaves, and the words of 60 tokens for 300 random numbers."""
    write_program(make_model(0), tmp_path / "c")
    (tmp_path / "c" / "noise.c").write_text(
        '#define main program\n#include "transformer.c"\n#undef main\n'
        "int main(void)\n{\n    unsigned word, number, index;\n"
        '    while (scanf("%u %u %u", &word, &number, &index) == 3)\n'
        '        printf("%d %u\\n", gumbel_noise(place_of(word)), word_of(number, index));\n    return 0;\n}\n'
    )
    subprocess.run([*find_compiler(), "-O1", "-o", "noise", "noise.c"], cwd=tmp_path / "c", check=True)
    generator = np.random.default_rng(10)
    words = (generator.integers(0, 2**32, 18000) >> generator.integers(0, 32, 18000)).astype(np.uint32)
    words[::2] = ~words[::2]
    numbers = generator.integers(1, 2**32, 300, dtype=np.uint32)
    rows = [f"{word} {numbers[i // 60]} {i % 60}" for i, word in enumerate(words.tolist())]
    said = subprocess.run(
        [tmp_path / "c" / "noise"], input="\n".join(rows), capture_output=True, text=True, check=True
    ).stdout
    expected = np.stack([gumbel_noise(words), random_words(numbers, 60).ravel()], axis=1)
    assert said == "".join(f"{noise} {word}\n" for noise, word in expected.tolist())


@needs_compiler
def test_a_sequence_does_not_depend_on_the_others(built):
    model, program = built("layer norm")
    prompts = random_prompts(model, 4, 8)
    together = program.generate(prompts, 9, temperature=1.0, seed=3)
    assert program.generate([*prompts[:2], [0], prompts[3]], 9, temperature=1.0, seed=3)[3] == together[3]
    same = program.generate([prompts[0], prompts[0]], 30, temperature=1.0, seed=3)
    assert same[0] != same[1]  # each has a generator of its own
    # the likeliest needs no random number
    assert program.generate(prompts, 9) == program.generate(prompts, 9, seed=99)


@needs_compiler
@pytest.mark.parametrize(
    ("change", "options"),
    [
        (("+ ((int64_t)1 << (shift - 1))", ""), []),  # rounding down
        (("(rounded & 1)", "0"), []),  # the same in 32 bits
        (("value > limit - 1 ? limit - 1", "value > limit ? limit"), []),  # a rail one too high
        (("(int32_t)1 << left", "(int32_t)1 << left / 2"), []),  # to the left by less
        (("c = 0; c < CHANNELS; c++) {\n        sum +=", "c = 1; c < CHANNELS; c++) {\n        sum +="), []),
        # not to itself
        (("fraction, position + 1, weights", "fraction, position + (position == 0), weights"), []),
        (("*state << 13", "*state << 12"), ["--temperature", "1"]),
        (("random, 13, 19)", "random, 13, 18)"), ["--temperature", "1"]),
        (("half ? -size", "half ? size"), ["--temperature", "1"]),
        (("octave < 15 ? octave : 15", "0"), ["--temperature", "1"]),
        (("CONTEXT / 2", "CONTEXT / 3"), []),
    ],
)
def test_a_changed_program_is_noticed(change, options, tmp_path):
    """The comparisons above can fail: each of these edits changes a result that they look at."""
    model = with_scores(0, 4)
    write_program(model, tmp_path / "c")
    source = tmp_path / "c" / "transformer.c"
    before, after = change
    assert source.read_text().count(before) == 1
    outputs = []
    prompts = "\n".join(" ".join(map(str, prompt)) for prompt in random_prompts(model, 20, 9)) + "\n"
    for text in (source.read_text(), source.read_text().replace(before, after)):
        source.write_text(text)
        subprocess.run([*find_compiler(), "-O0", "-o", "program", "transformer.c"], cwd=source.parent, check=True)
        command = [source.parent / "program", "--tokens", "30", *options]
        outputs.append(subprocess.run(command, input=prompts, capture_output=True, text=True, check=True).stdout)
    assert outputs[0] != outputs[1]


# The command


@needs_compiler
def test_prompts_may_have_any_white_space(built):
    _, program = built("layer norm")
    expected = " ".join(map(str, program.generate([[1, 2, 10]], 5)[0])) + "\n"
    for text in ("1 2 10\n", "1 2 10", "  1\t2  10 \r\n", "01 2 10\n"):
        command = [program.executable, "--tokens", "5"]
        result = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        assert result.stdout == expected
    result = subprocess.run([program.executable], input="", capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")


@needs_compiler
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 11\n", "outside the vocabulary"),
        ("99999999999999999999\n", "outside the vocabulary"),
        ("1 -2\n", "token numbers"),
        ("1,2\n", "token numbers"),
        ("one\n", "token numbers"),
        ("1\0 2\n", "token numbers"),
        ("\n", "a prompt is empty"),
        ("1 2\n\n3\n", "a prompt is empty"),
        ("   \n", "a prompt is empty"),
    ],
)
def test_bad_prompts_are_refused(built, text, message):
    _, program = built("layer norm")
    result = subprocess.run([program.executable], input=text, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


@needs_compiler
@pytest.mark.parametrize(
    "options",
    [
        ["--tokens"],
        ["--tokens", ""],
        ["--tokens", "-1"],
        ["--tokens", "1.5"],
        ["--tokens", "1e3"],
        ["--tokens", "99999999999999999999999"],
        ["--seed", "4294967296"],
        ["--seed", "one"],
        ["--temperature", "-0.5"],
        ["--temperature", "0.1234567"],
        ["--temperature", "1000.000001"],
        ["--temperature", "."],
        ["--temperature", "1.2.3"],
        ["--temperature", "nan"],
    ],
)
def test_bad_options_are_refused(built, options):
    _, program = built("layer norm")
    result = subprocess.run([program.executable, *options], input="1\n", capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert options[0] in result.stderr


@needs_compiler
def test_unknown_options_show_the_usage(built):
    _, program = built("layer norm")
    result = subprocess.run([program.executable, "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "token numbers 0 to 10" in result.stderr


@needs_compiler
def test_what_the_program_refuses_is_an_error_in_python(built):
    model, program = built("layer norm")
    for prompts, message in (([], "no prompt"), ([[]], "prompt is empty"), ([[11]], "outside the vocabulary")):
        with pytest.raises(QuantizationError, match=message):
            program.generate(prompts, 3)
    with pytest.raises(QuantizationError, match="--tokens"):
        program.generate([[1]], -1)
    with pytest.raises(QuantizationError, match="--seed"):
        program.generate([[1]], 1, seed=1 << 32)
    for temperature in (1e-7, 0.1234567, float("nan")):
        with pytest.raises(QuantizationError, match="at most 6 decimals"):
            program.generate([[1]], 1, temperature=temperature)
    with pytest.raises(QuantizationError, match="--temperature"):
        program.generate([[1]], 1, temperature=float("inf"))
    with pytest.raises(QuantizationError, match="no longer than the context"):
        program.logits([0] * (model.context_length + 1))


@needs_compiler
def test_temperatures_outside_the_samplers_range_are_refused_by_both(tmp_path):
    model = make_model(0, num_layers=1)
    coarse = replace(model, logits=replace(model.logits, output=QFormat(16, -15)))
    program = NativeTransformer.build(coarse, tmp_path / "c", ("-O0",))
    with pytest.raises(QuantizationError, match="too low"):
        Sampler(coarse.logits.output, 1e-6)
    with pytest.raises(QuantizationError, match="temperature does not suit"):
        program.generate([[1]], 1, temperature=1e-6)
    assert program.generate([[1]], 3, temperature=1.0) == reference_tokens(coarse, [[1]], 3, 1.0, 0)


@needs_compiler
def test_no_tokens_and_their_time(built):
    _, program = built("layer norm")
    assert program.generate([[1], [2, 3]], 0) == [[], []]
    tokens, seconds = program.timed([[1], [2, 3]], 50)
    assert [len(row) for row in tokens] == [50, 50]
    assert 0 < seconds < 30
    result = subprocess.run(
        [program.executable, "--tokens", "50", "--time"], input="1\n", capture_output=True, text=True, check=True
    )
    assert "50 tokens in " in result.stderr


@needs_compiler
@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_the_makefile_makes_the_program(tmp_path):
    model = make_model(0, num_layers=1)
    write_program(model, tmp_path / "c")
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"model.h", "transformer.c", "Makefile"}
    subprocess.run(["make", "CFLAGS=-O0"], cwd=tmp_path / "c", check=True, capture_output=True)
    program = NativeTransformer(tmp_path / "c" / "transformer", model.context_length, model.vocab_size)
    assert program.generate([[1, 2]], 5) == reference_tokens(model, [[1, 2]], 5, 0.0, 0)


# Compilers and files


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_no_compiler_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(CompilerError, match=r"no C compiler \(cc, gcc, clang\); install one"):
        NativeTransformer.build(make_model(0), tmp_path / "c")
    assert not (tmp_path / "c").exists()
    monkeypatch.setenv("CC", "nowhere-cc -m32")
    with pytest.raises(CompilerError, match="CC names, nowhere-cc, is not found"):
        find_compiler()
    executable(tmp_path / "gcc", "")
    monkeypatch.setenv("CC", " ")
    assert find_compiler() == ["gcc"]
    monkeypatch.setenv("CC", "gcc -m32")
    assert find_compiler() == ["gcc", "-m32"]


def test_a_failing_compiler_is_quoted(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", str(executable(tmp_path / "broken", "#!/bin/sh\necho out of registers >&2\nexit 4\n")))
    with pytest.raises(
        CompilerError, match=r"(?s)-o transformer transformer\.c -O3 -march=native` in .* failed:.out of registers"
    ):
        NativeTransformer.build(make_model(0), tmp_path / "c")


def test_a_program_that_dies_is_named(tmp_path):
    program = NativeTransformer(executable(tmp_path / "dies", "#!/bin/sh\necho poof >&2\nexit 3\n"), 4, 5)
    with pytest.raises(CompilerError, match="dies ended with status 3: poof"):
        program.generate([[1]], 1)


def test_only_a_program_is_replaced(tmp_path):
    write_program(make_model(0), tmp_path / "c")
    first = (tmp_path / "c" / "model.h").read_text()
    write_program(make_model(1), tmp_path / "c")
    assert (tmp_path / "c" / "model.h").read_text() != first
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(QuantizationError, match=r"holds no transformer\.c"):
        write_program(make_model(0), tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
