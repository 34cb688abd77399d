"""The `positron` command: one subcommand for each step from a text file to a verified bitstream.

A subcommand is a module of this package with `add_arguments(parser)` and `run(arguments) -> int` (the exit status). Its
docstring is its help text. Only the chosen one is imported, so `positron train` works where no FPGA tool is installed.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from positron_start import PACKAGES
from scripts import process
from scripts.process import EXIT_INTERRUPTED

COMMANDS = (
    "train",
    "generate",
    "quantize",
    "evaluate",
    "simulate",
    "synthesize",
    "export-c",
    "export-onnx",
    "export-verilog",
    "report",
    "demo",
    "prove",
    "campaign",
    "benchmark",
    "host",
    "doctor",
)
# The exceptions for what a user can do wrong or lacks; everything else is a bug and shows its traceback.
USER_ERRORS = (
    ("model.errors", "InputError"),
    ("fixedpoint.errors", "QuantizationError"),
    ("fixedpoint.errors", "CompilerError"),
    ("hdl.errors", "CircuitError"),
    ("hdl.errors", "ToolError"),
)
EXIT_FAILURE = 1

EPILOG = """\
commands:
{commands}

A run lives in one directory. The steps in order:
  positron train --text story.txt --out runs/story
  positron generate runs/story --prompt "Once"
  positron quantize runs/story
  positron simulate runs/story
  positron synthesize runs/story
  positron report runs/story
or all of them on the bundled sample text: positron demo
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line `words` (default: the process's) and return its exit status."""
    words = list(sys.argv[1:] if words is None else words)
    name = next((word for word in words if not word.startswith("-")), None)
    try:
        command = import_command(name) if name in COMMANDS else None
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in PACKAGES or not package:
            raise
        return fail(
            f"`positron {name}` needs the Python package {package}, which is not installed; "
            "install the hardware tools: pip install 'positron-transformer[fpga]'"
        )
    arguments = build_parser(name, command).parse_args(words)
    if command is None:  # `positron` alone: argparse lets a missing subcommand pass so that help can be shown
        build_parser(None, None).print_help()
        return 2
    return execute(command, arguments)


def import_command(name: str) -> ModuleType:
    """Import the module of a subcommand."""
    return importlib.import_module(f"scripts.{name.replace('-', '_')}")


def build_parser(name: str | None, command: ModuleType | None) -> argparse.ArgumentParser:
    """Return the parser of all subcommands, with the arguments of the one that is used."""
    parser = argparse.ArgumentParser(
        prog="positron",
        description="From a text file to a verified FPGA bitstream of a transformer.",
        epilog=EPILOG.format(commands=overview()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", dest="command", help="one of those below; each has --help")
    for other in COMMANDS:
        subparser = subparsers.add_parser(
            other,
            description=help_text(other),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if other == name and command is not None:
            command.add_arguments(subparser)
    return parser


def overview(names: Sequence[str] = COMMANDS, prefix: str = "") -> str:
    """Return a line for each command: its name and the first sentence of its help, the docstring of module `prefix` + name."""
    width = max(map(len, names))
    return "\n".join(f"  {name:<{width}}  {help_text(prefix + name).partition('.')[0]}" for name in names)


def help_text(name: str) -> str:
    """Return the docstring of a subcommand's module without importing it."""
    source = Path(__file__).with_name(f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def execute(command: ModuleType, arguments: argparse.Namespace) -> int:
    """Run a subcommand; what a user did wrong becomes one line on stderr and an exit status."""
    try:
        process.during_command()
        status = command.run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader (`| head`) has enough. Python flushes stdout at exit and would complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except KeyboardInterrupt:
        process.after_command()
        advice = getattr(command, "how_to_go_on", lambda _: "nothing was left half written; run the command again")
        print(f"\nstopped: {advice(arguments)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        return fail(describe(error))
    except user_errors() as error:
        return fail(str(error))
    finally:
        process.after_command()


def describe(error: OSError) -> str:
    """Return what a file system refused, and where: of a file that takes another one's place that place, not the name beside it."""
    name = error.filename if error.filename2 is None else error.filename2
    return f"{'' if name is None else f'{name}: '}{error.strerror or error}"


def user_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that report a user's mistake, of the packages that were imported."""
    return tuple(getattr(sys.modules[module], name) for module, name in USER_ERRORS if module in sys.modules)


def fail(message: str) -> int:
    """Print a message to stderr, one line unless it quotes a tool's log, and return the exit status of a failure."""
    print(f"error: {message.strip()}", file=sys.stderr)
    return EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
