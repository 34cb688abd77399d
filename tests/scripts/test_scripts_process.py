"""A command's process: Ctrl-C at any moment, and output in any encoding, in real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from model.training.trainer import Trainer
from scripts import cli
from scripts.commands import prove
from scripts.commands import train as train_command
from sim.proofs import proof

ROOT = Path(__file__).resolve().parents[2]
POSITRON = str(Path(sys.executable).with_name("positron"))
POSIX = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ASCII = {"PYTHONIOENCODING": "ascii"}
TEXT = "Die Katze saß auf dem Tisch – “ganz ruhig”. 東京 ist groß.\n" * 80


def python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("module", ["scripts", "numpy"])
@pytest.mark.parametrize(
    "command",
    [
        (POSITRON, "simulate", "run"),
        (sys.executable, "-m", "scripts.cli", "train"),
        (sys.executable, "scripts/cli.py", "cores"),
    ],
    ids=lambda command: " ".join(command[1:]),
)
def test_interrupt_while_a_command_is_imported(command: tuple[str, ...], module: str) -> None:
    with subprocess.Popen(
        command,
        cwd=ROOT,
        # Python says which module it has imported
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.rpartition("|")[2].strip() == module:
                break
        process.send_signal(signal.SIGINT)
        rest = [line for line in process.stderr if not line.startswith("import time:")]
    assert process.returncode == 130
    assert "".join(rest) == "\nstopped: nothing was started; run the command again\n"


AROUND_A_COMMAND = """
import os, signal
from scripts import process
process.prepare()
process.during_command()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted", flush=True)
process.after_command()
os.kill(os.getpid(), signal.SIGINT)
print("still here")
"""


def test_interrupt_is_an_exception_while_the_command_runs_and_an_exit_afterwards() -> None:
    result = python(AROUND_A_COMMAND)
    assert (result.returncode, result.stdout, result.stderr) == (130, "interrupted\n", "")


def test_ignored_interrupt_stays_ignored() -> None:
    result = python(f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN){AROUND_A_COMMAND}")
    assert (result.returncode, result.stdout, result.stderr) == (0, "still here\n", "")


def test_importing_the_package_changes_no_process() -> None:
    program = "import signal, sys, scripts.cli; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, sys.stdout.errors)"
    assert python(program, PYTHONIOENCODING="utf-8").stdout == "True strict\n"


@pytest.mark.parametrize(("asked", "threads"), [({}, 1), ({"OPENBLAS_NUM_THREADS": "2"}, 2)], ids=str)
def test_a_command_has_one_blas_thread_unless_the_environment_says_otherwise(
    asked: dict[str, str], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    program = """
import sys
sys.argv[0] = "-m"  # as `python -m scripts.cli` begins
import scripts
assert "numpy" not in sys.modules
import os, numpy
numpy.ones((512, 512)) @ numpy.ones((512, 512))
print(len(os.listdir("/proc/self/task")))
"""
    result = python(program, **asked)
    assert result.stdout == f"{min(threads, os.cpu_count() or 1)}\n", result.stderr


SMALL = [
    "--embed-dim",
    "16",
    "--num-heads",
    "2",
    "--num-layers",
    "1",
    "--max-seq-len",
    "16",
    "--batch-size",
    "4",
    "--workers",
    "1",
    "--steps",
    "3",
]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def interrupted(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


# Where Ctrl-C comes; whether something was saved by then.
MOMENTS = [
    ("the tokenizer learns", train_command.CharacterTokenizer, "train", False),
    ("workers start", Trainer, "_fill", False),
    ("the state is saved, the model is not", Trainer, "_save_best", False),
    ("the first step", Trainer, "_run_steps", True),
    ("the last evaluation", Trainer, "_finish", True),
]


@pytest.mark.parametrize("force", [False, True], ids=["first", "anew"])
@pytest.mark.parametrize(
    ("owner", "name", "saved"), [moment[1:] for moment in MOMENTS], ids=[one[0] for one in MOMENTS]
)
def test_advice_of_interrupted_training_works(
    owner: type, name: str, saved: bool, force: bool, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "a run"
    words = ["train", "--text", str(text), "--out", str(run), *SMALL]
    if force:
        assert cli.main(words) == 0  # an earlier training, which can be resumed and must not be
        words += ["--force", "--seed", "7"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        assert cli.main(words) == 130
    advice = capsys.readouterr().err.strip().splitlines()[-1]
    if saved:
        assert advice == f"stopped: resume from the last saved step with: positron train --resume --out '{run}'"
        assert cli.main(["train", "--resume", "--out", str(run)]) == 0
    else:
        assert advice == "stopped: nothing was saved yet; run the command again"
        assert cli.main(words) == 0


EVERY_COMMAND = """
import sys
from scripts import cli, process
process.prepare()
text, run = sys.argv[1:]
for words in (
    ["train", "--text", text, "--out", run, "--embed-dim", "16", "--num-heads", "2", "--num-layers", "1", "--max-seq-len", "16",
     "--batch-size", "4", "--steps", "2", "--workers", "1"],
    ["generate", run, "--prompt", "Tisch \\u2013 \\u6771"],
    ["quantize", run],
    ["generate", run, "--quantized", "--temperature", "3", "--prompt", "gro\\xdf"],
    ["evaluate", run, "--text", text],
    ["report", run],
):
    status = cli.main(words)
    print("status", words[0], status, flush=True)
"""


@pytest.mark.parametrize("environment", [POSIX, {}], ids=["POSIX", "as it is"])
def test_no_command_ends_because_of_an_encoding(environment: dict[str, str], text: Path, tmp_path: Path) -> None:
    """Neither the output's, nor that of names; and files are UTF-8 whatever the terminal is."""
    text = text.rename(tmp_path / "Käse \udcff.txt")
    run = tmp_path / "a – \udcff"
    result = subprocess.run(
        [sys.executable, "-c", EVERY_COMMAND, text, run],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=120,
        check=False,
    )
    shown = result.stdout.decode(errors="surrogateescape")
    assert b"Traceback" not in result.stderr, result.stderr.decode(errors="replace")
    statuses = [line.split()[1:] for line in shown.splitlines() if line.startswith("status ")]
    names = ["train", "generate", "quantize", "generate", "evaluate", "report"]
    assert statuses == [[name, "0"] for name in names], shown
    for prompt in ("Tisch – 東", "groß"):
        assert (prompt.encode("ascii", "backslashreplace").decode() if environment else prompt) in shown
    assert f"run: {run}\n" in shown, "names are written as the bytes that they are"
    assert (run / "sample.txt").read_text(encoding="utf-8").startswith("groß")
    for file in ("training.json", "evaluation.json"):
        assert "Käse \ufffd.txt" in (run / file).read_text(encoding="utf-8")
    assert "a – \ufffd" in (run / "report.html").read_text(encoding="utf-8")


def test_output_that_is_not_utf_8_from_the_console_script() -> None:
    result = subprocess.run([POSITRON, "--help"], env={**os.environ, **POSIX}, capture_output=True, check=False)
    assert result.returncode == 0
    bad = subprocess.run(
        [POSITRON, "generate", "fehlt – \udcff"], env={**os.environ, **ASCII}, capture_output=True, check=False
    )
    assert bad.returncode == 1
    assert bad.stderr.count(b"\n") == 1
    assert b"there is no run directory fehlt \\u2013 \xff" in bad.stderr


def test_interrupt_ends_the_proofs_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def settle(claim: object, directory: Path, *, faulty: bool, tick: Callable[[], None]) -> None:
        time.sleep(0.2)  # by then the main thread waits, and is interrupted there
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                tick()
            except KeyboardInterrupt:
                ended.append(claim)
                raise
            time.sleep(0.01)

    monkeypatch.setattr(proof, "settle", settle)
    with pytest.raises(KeyboardInterrupt):
        prove.settle_all([(SimpleNamespace(depth=1), False)], tmp_path, 1)  # type: ignore[list-item]
    assert len(ended) == 1
