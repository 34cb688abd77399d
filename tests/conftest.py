"""What several test modules share."""

import os

# Before anything imports NumPy: the test processes share the cores, and one thread each is faster
# than a quarrel about them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Hundreds of processes import the project: it is compiled once, not in each of them.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# What tests write must survive the death of a process, not of the machine: waiting for the disk
# takes longer than many of them.
os.fsync = lambda descriptor: None

# A shell that starts the tests in the background lets them ignore Ctrl-C, and whatever they start
# inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is about Icarus Verilog, and say so, where that is not installed."""
    from hdl.tools.toolchain import find_tool

    if find_tool("iverilog") is None:
        for item in items:
            if item.get_closest_marker("icarus"):
                item.add_marker(pytest.mark.skip(reason="Icarus Verilog is not installed"))


@pytest.fixture(scope="session", autouse=True)
def losses_drawn_once() -> Iterator[None]:
    """Let the first training of each test process draw its losses and give the others the same
    picture, which takes longer than most of them train.

    `tests/model/training/test_model_pictures.py` draws losses of all kinds.
    """
    from model.training import pictures

    draw, kept = pictures.plot_losses, []

    def plot_losses(rows: list, path: str | Path) -> None:
        if kept:
            Path(path).write_bytes(kept[0])
        else:
            draw(rows, path)
            kept.append(Path(path).read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "plot_losses", plot_losses)
        yield


@pytest.fixture(scope="session")
def tiny_run_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a tiny run, trained for a few steps and quantized. Not to be
    changed.
    """
    from scripts import cli

    directory = tmp_path_factory.mktemp("runs") / "tiny"
    text = directory.with_name("text.txt")
    text.write_text(
        "The cat sat on the mat. The dogs ran to the old house, and the cat saw them.\n" * 60, encoding="utf-8"
    )
    sizes = "--embed-dim 32 --num-heads 4 --num-layers 2 --ff-dim 64 --max-seq-len 16 --batch-size 8"
    training = f"train --text {text} --out {directory} --steps 60 --seed 3 --workers 1 {sizes}"
    assert cli.main(training.split()) == 0
    assert cli.main(["quantize", str(directory)]) == 0
    return directory


@pytest.fixture(scope="session")
def simulation_builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of compiled simulations, one for all test processes."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "simulation"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture
def tiny_run(tiny_run_original: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny run that a test may change."""
    return Path(shutil.copytree(tiny_run_original, tmp_path / "tiny"))
