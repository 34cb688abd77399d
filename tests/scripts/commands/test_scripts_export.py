"""`export`: what it writes is the run's model."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fixedpoint import load_export
from fixedpoint.export.c_program import COMPILERS, NativeTransformer
from fixedpoint.generation import generate_batch
from model import BPETokenizer, RunDirectory
from scripts import cli

needs_compiler = pytest.mark.skipif(
    not os.environ.get("CC") and not any(map(shutil.which, COMPILERS)), reason="no C compiler"
)


def expected_text(run: Path, prompt: str, length: int, temperature: float, seed: int) -> str:
    directory = RunDirectory(run)
    quantized, tokenizer = load_export(directory.quantized), directory.load_tokenizer()
    (tokens,) = generate_batch(quantized, [tokenizer.encode(prompt)], length, temperature=temperature, seed=seed)
    return prompt + tokenizer.decode(tokens) + "\n"


@needs_compiler
def test_the_c_program_writes_the_integer_models_text(
    tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [
        "export",
        "--format",
        "c",
        str(tiny_run),
        "--out",
        str(tmp_path / "c"),
        "--prompt",
        "The cat",
        "--length",
        "40",
    ]
    assert cli.main([*words, "--temperature", "0.7", "--seed", "5"]) == 0
    shown = capfd.readouterr()
    assert shown.out == expected_text(tiny_run, "The cat", 40, 0.7, 5)
    assert "tokens/s" in shown.err
    assert f"program: {tmp_path / 'c' / 'transformer'}" in shown.err


@needs_compiler
@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_the_line_that_is_shown_works(tiny_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny_run = tiny_run.rename(tiny_run.with_name("it's a run; ls"))
    assert cli.main(["export", "--format", "c", str(tiny_run)]) == 0
    shown = capfd.readouterr().out
    assert (tiny_run / "c" / "model.h").read_bytes() == (tiny_run / "quantized" / "model.h").read_bytes()
    line = shown.rpartition("compile and run: ")[2]
    result = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    quantized = load_export(tiny_run / "quantized")
    (tokens,) = generate_batch(quantized, [[0]], 100, temperature=0.8)
    assert result.stdout.splitlines()[-1] == " ".join(map(str, tokens))


def test_what_the_program_returns_is_decoded_as_generated_text_is(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Program:
        executable = tmp_path

        def timed(self, *arguments: object, **options: object) -> tuple[list[list[int]], float]:
            return [[0x80, 0xF0, 0x9F, 0x98, 0x80, 0x6F, 0x6B]], 1.0

    tokenizer = BPETokenizer(256)
    tokenizer.train("ab")
    monkeypatch.setattr(NativeTransformer, "build", lambda *arguments: Program())
    monkeypatch.setattr(RunDirectory, "load_tokenizer", lambda self: tokenizer)
    assert cli.main(["export", "--format", "c", str(tiny_run), "--prompt", "a"]) == 0
    assert capsys.readouterr().out == "a\ufffd😀ok\n"


def test_the_graph_is_written(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "--format", "onnx", str(tiny_run)]) == 0
    assert f"graph: {tiny_run / 'quantized.onnx'}" in capsys.readouterr().out
    path = tmp_path / "new" / "model.onnx"
    assert cli.main(["export", "--format", "onnx", str(tiny_run), "--out", str(path)]) == 0
    assert path.read_bytes() == (tiny_run / "quantized.onnx").read_bytes()
    onnxruntime = pytest.importorskip("onnxruntime")
    quantized = load_export(tiny_run / "quantized")
    tokens = RunDirectory(tiny_run).load_validation_tokens()[:32].reshape(2, 16).astype(np.int64)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = quantized.logits.output.dequantize(quantized.forward(tokens)).astype(np.float32)
    np.testing.assert_array_equal(session.run(None, {"tokens": tokens})[0], expected)


@pytest.mark.parametrize("form", ["c", "onnx"])
def test_a_run_that_is_not_quantized_is_named(tiny_run: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(tiny_run / "quantized")
    assert cli.main(["export", str(tiny_run), "--format", form]) == 1
    assert "is not quantized yet: positron quantize" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", ""], "--prompt is empty"),
        (["--prompt", "Q7%"], "error: "),
        (["--prompt", "The", "--length", "-1"], "--tokens"),
        (["--prompt", "The", "--seed", "-1"], "--seed"),
        (["--prompt", "The", "--temperature", "0.1234567"], "at most 6 decimals"),
        (["--prompt", "The", "--temperature", "-1"], "--temperature"),
    ],
)
@needs_compiler
def test_what_the_program_cannot_do_is_one_line(
    tiny_run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", "--format", "c", str(tiny_run), *words]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]


def test_no_compiler_is_one_line(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    assert cli.main(["export", "--format", "c", str(tiny_run)]) == 0  # writing needs none
    assert cli.main(["export", "--format", "c", str(tiny_run), "--prompt", "The"]) == 1
    assert "error: there is no C compiler" in capsys.readouterr().err
