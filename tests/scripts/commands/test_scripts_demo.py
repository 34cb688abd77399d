"""The demonstration, with fake steps, redoes only what changed and stops at the first failure."""

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest

from model.run import RunDirectory
from positron_start import PROJECT
from scripts import cli
from scripts import stages as stage_records
from scripts.commands import demo
from scripts.stages import Stage

ORDER = ["train", "generate", "quantize", "simulate", "synthesize", "report"]


class FakeCommands:
    """Commands that write what the real ones would, and note that they were called."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.calls: list[str] = []
        self.words: dict[str, argparse.Namespace] = {}
        self.fail_at: dict[str, BaseException | int] = {}
        self.weights = "weights"

    def arguments(self) -> argparse.Namespace:
        return argparse.Namespace(out=self.out, text=None, steps=None, until="report")

    def import_command(self, name: str) -> SimpleNamespace:
        def add_arguments(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("run", nargs="?")
            parser.add_argument("--out")
            parser.add_argument("--text")
            parser.add_argument("--steps")
            parser.add_argument("--smallest", action="store_true")
            parser.add_argument("--embed-dim")
            parser.add_argument("--num-layers")
            parser.add_argument("--resume", action="store_true")
            parser.add_argument("--force", action="store_true")

        def run(arguments: argparse.Namespace) -> int:
            self.calls.append(name)
            self.words[name] = arguments
            problem = self.fail_at.get(name)
            if isinstance(problem, BaseException):
                raise problem
            if problem:
                return problem
            for stage in demo.stages(self.arguments()):
                if stage.command == name:
                    self.write(stage)
            return 0

        return SimpleNamespace(add_arguments=add_arguments, run=run)

    def write(self, stage: Stage) -> None:
        for path in stage.outputs:
            if path.suffix:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self.weights if stage.command == "train" else stage.command)
            else:
                path.mkdir(exist_ok=True)
                (path / "content").write_text(stage.command)

    def run(self) -> list[str]:
        """Run the demonstration and return which steps it did."""
        self.calls.clear()
        assert demo.run(self.arguments()) == 0
        return list(self.calls)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCommands:
    fakes = FakeCommands(tmp_path / "run")
    monkeypatch.setattr(cli, "import_command", fakes.import_command)
    # someone may be editing the real sources
    monkeypatch.setattr(stage_records, "PROJECT", tmp_path)
    return fakes


def test_every_step_is_done_in_order_then_none(commands: FakeCommands, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run() == ORDER
    first = capsys.readouterr().out
    assert "[1/6]" in first
    assert "All done in" in first
    assert f"$ positron quantize {commands.out}" in first
    assert commands.run() == []
    assert capsys.readouterr().out.count("up to date") == 6


def test_changed_weights_redo_what_depends_on_them(commands: FakeCommands) -> None:
    commands.run()
    run = RunDirectory(commands.out)
    run.sample.write_text("damaged")
    assert commands.run() == ["generate"]
    (run.quantized / "content").write_text("damaged")
    # The same integers come out of quantization again, so circuits are not simulated again.
    assert commands.run() == ["quantize"]
    commands.weights = "other weights"
    run.model_weights.unlink()
    assert commands.run()[:3] == ["train", "generate", "quantize"]


def test_removed_result_is_made_again(commands: FakeCommands) -> None:
    commands.run()
    RunDirectory(commands.out).report.unlink()
    assert commands.run() == ["report"]


def test_failure_stops_and_keeps_what_is_done(commands: FakeCommands, capsys: pytest.CaptureFixture[str]) -> None:
    commands.fail_at["simulate"] = 1
    assert demo.run(commands.arguments()) == 1
    assert commands.calls == ORDER[:4]
    assert "stopped at `simulate`" in capsys.readouterr().err
    commands.fail_at.clear()
    assert commands.run() == ORDER[3:]


@pytest.mark.parametrize("step", ORDER)
def test_interrupted_demo_resumes_at_its_step(commands: FakeCommands, step: str) -> None:
    commands.fail_at[step] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        demo.run(commands.arguments())
    commands.fail_at.clear()
    assert commands.run() == ORDER[ORDER.index(step) :]


def test_interrupted_training_is_resumed_and_changed_training_starts_again(commands: FakeCommands) -> None:
    commands.fail_at["train"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        demo.run(commands.arguments())
    assert not commands.words["train"].resume
    with pytest.raises(KeyboardInterrupt):
        demo.run(commands.arguments())
    assert commands.words["train"].force, "it was interrupted before there was anything to resume"
    RunDirectory(commands.out).training_state.write_text("state")
    with pytest.raises(KeyboardInterrupt):
        demo.run(commands.arguments())
    assert commands.words["train"].force, "it was interrupted before the model was there"
    RunDirectory(commands.out).model_config.write_text("model")
    with pytest.raises(KeyboardInterrupt):
        demo.run(commands.arguments())
    assert commands.words["train"].resume
    other = commands.arguments()
    other.steps = 7
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            demo.run(other)
        assert not commands.words["train"].resume, "the state that is there is another training's"
        assert commands.words["train"].steps == "7"


def test_until_stops_early(commands: FakeCommands) -> None:
    arguments = commands.arguments()
    arguments.until = "quantize"
    assert demo.run(arguments) == 0
    assert commands.calls == ORDER[:3]
    assert commands.run() == ORDER[3:]


def test_interrupt_reported_by_a_step_says_how_to_resume(
    commands: FakeCommands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.fail_at["train"] = 130
    assert demo.run(commands.arguments()) == 130
    assert "the same command resumes" in capsys.readouterr().err


def test_stages_name_sources_that_exist() -> None:
    stages = demo.stages(argparse.Namespace(out=Path("runs/demo"), text=None, steps=None, until="report"))
    assert [stage.command for stage in stages] == ORDER == list(demo.TITLES)
    for stage in stages:
        for source in stage.sources:
            assert (PROJECT / source).is_file(), f"{stage.command} depends on {source}, which does not exist"
        assert f"scripts/commands/{stage.command}.py" in stage.sources


@pytest.mark.parametrize(
    ("file", "redone"),
    [
        ("scripts/report/data.py", {"report"}),
        ("scripts/report/template.html", {"report"}),
        ("scripts/report/charts.py", {"report"}),
        ("scripts/quantization/options.py", {"train", "quantize"}),
        ("scripts/training/fine_tuning.py", {"train"}),
        ("scripts/quantization/pictures.py", {"quantize", "report"}),
        ("hdl/tools/cells/mult18x18d.v", {"synthesize"}),
        ("scripts/commands/doctor.py", set()),
    ],
)
def test_an_edited_file_redoes_the_steps_that_run_it(
    file: str, redone: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_records, "PROJECT", tmp_path)
    stages = demo.stages(argparse.Namespace(out=tmp_path / "run", text=None, steps=None, until="report"))
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text("before")
    before = [stage.fingerprint() for stage in stages]
    (tmp_path / file).write_text("after")
    assert {stage.command for stage, old in zip(stages, before, strict=True) if stage.fingerprint() != old} == redone
