import shutil
from pathlib import Path

import pytest

from fixedpoint import load_export
from fixedpoint.generation import generate_batch
from model.tokenizers.tokenizer import load_tokenizer
from scripts import cli


def generate(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert cli.main(["generate", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_text_is_printed_alone_and_kept(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = generate(capsys, tiny_run, "--prompt", "The cat", "--length", 40)
    assert out.startswith("The cat")
    assert len(out) == len("The cat") + 40 + 1
    assert (tiny_run / "sample.txt").read_text(encoding="utf-8") == out


def test_same_seed_same_text(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (tiny_run, "--prompt", "The", "--length", 60, "--temperature", 1.5, "--seed")
    first = generate(capsys, *options, 1)
    assert generate(capsys, *options, 1) == first
    assert generate(capsys, *options, 2) != first


def test_temperature_zero_ignores_the_seed(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (tiny_run, "--prompt", "The", "--length", 30, "--temperature", 0, "--seed")
    assert generate(capsys, *options, 1) == generate(capsys, *options, 2)


def test_default_prompt_is_dropped_when_the_model_lacks_its_letters(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "O" not in (tiny_run / "tokenizer.json").read_text(encoding="utf-8")
    assert len(generate(capsys, tiny_run, "--length", 10)) == 10 + 1


def test_trained_model_spells_its_text(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # 60 steps on one repeated sentence are enough for its words, and a model that learned nothing
    # writes none.
    out = generate(capsys, tiny_run, "--prompt", "The cat ", "--length", 200, "--temperature", 0.3)
    assert "the " in out


def test_the_quantized_model_generates(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (tiny_run, "--quantized", "--prompt", "The cat ", "--length", 60, "--temperature", 0.3, "--seed")
    out = generate(capsys, *options, 1)
    quantized, tokenizer = load_export(tiny_run / "quantized"), load_tokenizer(tiny_run / "tokenizer.json")
    tokens = generate_batch(quantized, [tokenizer.encode("The cat ")], 60, temperature=0.3, seed=1, use_cache=False)
    assert out == "The cat " + tokenizer.decode(tokens[0]) + "\n"
    assert (tiny_run / "sample.txt").read_text(encoding="utf-8") == out
    assert generate(capsys, *options, 2) != out


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--top-k", 3], "--top-k and --top-p"), (["--top-p", 0.5], "--top-p"), (["--seed", -1], "seed")],
)
def test_options_of_the_float_model_are_refused_with_quantized(
    options: list[object], message: str, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", str(tiny_run), "--quantized", *map(str, options)]) == 1
    assert message in capsys.readouterr().err


def test_a_run_must_be_quantized_first(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(tiny_run / "quantized")
    assert cli.main(["generate", str(tiny_run), "--quantized"]) == 1
    assert "not quantized yet" in capsys.readouterr().err
