"""Load a run's bitstream into a board.

The circuit is that of `positron synthesize RUN`: the whole decoder, or with --only attention one
layer's. It is loaded into the FPGA's memory, so it is gone when the board is switched off. The
first of the board's usual programs that is installed does it; where none is, the command is printed
for another machine. No board was attached when this was written.

Example:
  positron load runs/demo
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess

from hdl.errors import ToolError
from hdl.tools.toolchain import search_path, tool_environment
from model.errors import InputError
from scripts.runs import add_run_argument, attention_synthesis, open_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_run_argument(parser)
    parser.add_argument("--only", choices=["attention"], help="load what `synthesize --only` built")


def run(arguments: argparse.Namespace) -> int:
    """Find a program and the bitstream, and run it."""
    from hdl.board.boards import find_board
    from hdl.tools.synthesis_report import read_report

    directory = open_run(arguments.run)
    place = directory.synthesis if arguments.only is None else attention_synthesis(directory)
    report = read_report(place)
    if report is None or report.bitstream is None:
        only = "" if arguments.only is None else " --only attention"
        raise InputError(
            f"there is no complete bitstream in {place}; make one: positron synthesize {shlex.quote(str(directory.path))}{only}"
        )
    commands = [
        [word.replace("{}", str(place / report.bitstream)) for word in loader]
        for loader in find_board(report.board).loaders
    ]
    path = ":".join(map(str, search_path()))
    command = next((words for words in commands if shutil.which(words[0], path=path)), None)
    if command is None:
        programs = " or ".join(words[0] for words in commands)
        raise ToolError(f"{programs} is not installed; install it and run: {shlex.join(commands[0])}")
    print(shlex.join(command), flush=True)
    status = subprocess.run(command, env=tool_environment(), check=False).returncode
    if status:
        raise ToolError(
            f"{command[0]} failed with exit status {status}; is the board {report.board} connected, and may you use its USB port?"
        )
    print(
        f"loaded into {report.board}; write text with it: positron generate {shlex.quote(str(directory.path))} --device PORT"
    )
    return 0
