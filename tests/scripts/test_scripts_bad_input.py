"""A user's mistakes end with one clear line and a non-zero exit status, some in real processes."""

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model import InputError, RunDirectory
from model.files import read_text
from scripts import cli

ROOT = Path(__file__).resolve().parents[2]


def positron(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a command in this process; an exception that would end a real one with a traceback fails
    the test.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(list(map(str, words)))
    printed = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return subprocess.CompletedProcess(words, status, *printed)


def positron_process(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.cli", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )


def assert_refused(result: subprocess.CompletedProcess[str], *fragments: str) -> None:
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("error: "), result.stderr
    assert sum(line.startswith("error:") for line in lines) == 1
    assert len(lines[-1]) < 400
    for fragment in fragments:
        assert fragment in lines[-1]


def missing(path: Path) -> None:
    """Leave the path empty."""


def directory(path: Path) -> None:
    path.mkdir()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 100)


def latin_1(path: Path) -> None:
    path.write_bytes("Käse und Brot. ".encode("latin-1") * 100)


def short(path: Path) -> None:
    path.write_text("Too short for a context of 64 characters.")


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (missing, "does not exist"),
        (directory, "is a directory"),
        (empty, "is empty"),
        (binary, "binary"),
        (latin_1, "not UTF-8"),
        (short, "too few"),
    ],
)
def test_training_text(make: Callable[[Path], None], fragment: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    make(text)
    assert_refused(positron("train", "--text", text, "--out", tmp_path / "run", "--steps", 1), fragment)
    assert not (tmp_path / "run").exists(), "a refused text leaves no run behind"


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("--embed-dim", "10", "--num-heads", "3"), "multiple of num_heads"),
        (("--steps", "0"), "num_steps"),
        (("--learning-rate", "nan"), "learning_rate"),
        (("--num-layers", "-1"), "num_layers"),
    ],
)
def test_training_settings(words: tuple[str, ...], fragment: str, tmp_path: Path) -> None:
    assert_refused(positron("train", "--out", tmp_path / "run", *words), fragment)


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_refused(positron_process("train", "--out", tmp_path / "file" / "run", "--steps", 1), str(tmp_path / "file"))


def test_training_over_a_trained_run(tiny_run: Path) -> None:
    before = (tiny_run / "model_weights.npz").read_bytes()
    assert_refused(positron_process("train", "--out", tiny_run, "--steps", 1), "--force", "--resume")
    assert (tiny_run / "model_weights.npz").read_bytes() == before


def test_resuming_what_is_not_there(tmp_path: Path) -> None:
    assert_refused(positron("train", "--out", tmp_path / "run", "--resume"), str(tmp_path / "run"))


@pytest.mark.parametrize("command", ["generate", "quantize", "evaluate", "simulate", "synthesize", "report"])
def test_run_that_is_not_there(command: str, tmp_path: Path) -> None:
    run = positron_process if command == "quantize" else positron
    assert_refused(run(command, tmp_path / "absent"), "there is no run directory", "positron train")
    (tmp_path / "bare").mkdir()
    assert_refused(positron(command, tmp_path / "bare"), "no trained model", "positron train")


AWKWARD = "it's $HOME; ls"


@pytest.mark.parametrize("command", ["generate", "quantize", "report"])
@pytest.mark.parametrize("make", [missing, directory])
def test_advice_is_quoted_for_a_shell(
    command: str, make: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / AWKWARD)
    assert cli.main([command, str(tmp_path / AWKWARD)]) == 1
    advice = capsys.readouterr().err.partition(": positron ")[2]
    assert shlex.split(advice) == ["train", "--out", str(tmp_path / AWKWARD)]


def test_advice_to_quantize_is_quoted_for_a_shell(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_run.rename(tiny_run.with_name(AWKWARD))
    (run / "quantization.json").unlink()
    assert cli.main(["evaluate", str(run)]) == 1
    assert shlex.split(capsys.readouterr().err.partition(": positron ")[2]) == ["quantize", str(run)]


def test_library_gives_the_same_advice(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / AWKWARD)
    for _ in ("absent", "bare"):
        with pytest.raises(InputError) as refused:
            run.load_model()
        assert shlex.split(str(refused.value).split("`")[1]) == ["positron", "train", "--out", str(run.path)]
        run.path.mkdir(exist_ok=True)
    text = run.path / AWKWARD
    latin_1(text)
    with pytest.raises(InputError) as refused:
        read_text(text)
    assert shlex.split(str(refused.value).partition("for example: ")[2])[-1] == str(text)


def test_character_that_the_model_does_not_know(tiny_run: Path) -> None:
    assert_refused(positron("generate", tiny_run, "--prompt", "The €"), "€")


@pytest.mark.parametrize("words", [("generate",), ("generate", "--quantized"), ("export", "--format", "c")])
def test_prompt_that_is_not_utf_8(words: tuple[str, ...], tiny_run: Path) -> None:
    # the byte 0xff, for a process
    result = positron_process(words[0], tiny_run, *words[1:], "--prompt", "ab\udcff")
    assert_refused(result, "--prompt is not UTF-8 text (byte 0xff at offset 2)")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("words", "fragment"),
    [(("--length", "0"), "--length"), (("--temperature", "-1"), "temperature"), (("--top-k", "0"), "top_k")],
)
def test_generation_settings(words: tuple[str, ...], fragment: str, tiny_run: Path) -> None:
    result = positron("generate", tiny_run, *words)
    assert_refused(result, fragment)
    assert result.stdout == ""


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, Path.unlink])
@pytest.mark.parametrize("name", ["model_weights.npz", "tokenizer.json"])
def test_damaged_model(name: str, damage: Callable[[Path], None], tiny_run: Path) -> None:
    if name == "tokenizer.json" and damage is flip_a_bit:
        pytest.skip("a letter changed for another is a valid vocabulary")
    damage(tiny_run / name)
    assert_refused(positron("generate", tiny_run), name)


def test_edited_model_configuration(tiny_run: Path) -> None:
    path = tiny_run / "model_config.json"
    path.write_text(path.read_text().replace('"embed_dim": 32', '"embed_dim": 64'))
    assert_refused(positron("generate", tiny_run), "model_")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, Path.unlink])
@pytest.mark.parametrize(
    "name", ["quantized/weights.safetensors", "quantized/manifest.json", "quantized/logits.weight.mem"]
)
def test_damaged_export(name: str, damage: Callable[[Path], None], tiny_run: Path) -> None:
    damage(tiny_run / name)
    assert_refused(positron("evaluate", tiny_run), "quantize")


@pytest.mark.parametrize("name", ["train_tokens.npy", "validation_tokens.npy"])
@pytest.mark.parametrize("damage", [truncate, empty, Path.unlink])
def test_damaged_tokens(name: str, damage: Callable[[Path], None], tiny_run: Path) -> None:
    damage(tiny_run / name)
    assert_refused(positron("quantize", tiny_run), name)


@pytest.mark.parametrize("words", [("--weight-bits", "1"), ("--activation-bits", "11"), ("--calibration-windows", "0")])
def test_quantization_settings(words: tuple[str, ...], tiny_run: Path) -> None:
    assert_refused(
        positron("quantize", tiny_run, *words), words[0].strip("-").replace("-", "_") if words[1] != "0" else words[0]
    )


def test_evaluation_before_quantization(tiny_run: Path) -> None:
    (tiny_run / "quantized").rename(tiny_run / "elsewhere")
    for command in ("evaluate", "simulate", "synthesize"):
        assert_refused(positron(command, tiny_run), "positron quantize")


def test_quantized_model_of_other_weights(tiny_run: Path) -> None:
    path = tiny_run / "quantization.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "model_sha256": "0" * 64}))
    assert_refused(positron("evaluate", tiny_run), "not made from the model that is there now", "positron quantize")


@pytest.mark.parametrize(("make", "fragment"), [(missing, "does not exist"), (binary, "binary"), (short, '"k"')])
def test_evaluation_text(make: Callable[[Path], None], fragment: str, tiny_run: Path, tmp_path: Path) -> None:
    make(tmp_path / "text.txt")
    result = positron("evaluate", tiny_run, "--text", tmp_path / "text.txt")
    assert_refused(result) if make is short else assert_refused(result, fragment)


@pytest.mark.parametrize(("simulator", "lacks"), [("icarus", "iverilog"), ("verilator", "perl")])
def test_missing_simulator(simulator: str, lacks: str, tiny_run: Path, tmp_path: Path) -> None:
    result = positron_process("simulate", tiny_run, "--simulator", simulator, "--vectors", 2, PATH=str(tmp_path))
    assert_refused(result, simulator, lacks)


def test_circuit_that_is_not_there(tiny_run: Path) -> None:
    result = positron_process("simulate", tiny_run, "--only", "softmacs")
    assert result.returncode == 2
    assert "invalid choice: 'softmacs'" in result.stderr.splitlines()[-1]


def test_no_vectors(tiny_run: Path) -> None:
    assert_refused(positron("simulate", tiny_run, "--vectors", 0), "--vectors")


def test_model_that_does_not_fit_the_board(tiny_run: Path) -> None:
    # A multiplier for each of 32 channels, and a few more; this chip has 28.
    assert_refused(positron("synthesize", tiny_run, "--board", "ulx3s-25f"), "28 multipliers", "room for a width of 16")
    attention = positron("synthesize", tiny_run, "--board", "ulx3s-25f", "--only", "attention")
    assert_refused(attention, "28", "multipliers")
    assert not (tiny_run / "synthesis_attention").exists()
    assert not (tiny_run / "synthesis").exists()


def test_board_and_layer_that_do_not_exist(tiny_run: Path) -> None:
    assert_refused(positron("synthesize", tiny_run, "--board", "breadboard"), "breadboard", "ulx3s-85f")
    assert_refused(positron("synthesize", tiny_run, "--only", "attention", "--layer", 2), "layer 2")


def test_host_without_a_board(tiny_run: Path, tmp_path: Path) -> None:
    assert_refused(positron_process("host", tiny_run, "--port", tmp_path / "no_port"), "cannot open the serial port")


def test_report_to_a_place_that_does_not_exist(tiny_run: Path, tmp_path: Path) -> None:
    assert_refused(positron("report", tiny_run, "--out", tmp_path / "absent" / "page.html"), "absent")


def test_demo_passes_on_the_refusal_of_its_step(tmp_path: Path) -> None:
    assert_refused(positron("demo", "--out", tmp_path / "run", "--text", tmp_path / "absent.txt"), "does not exist")
