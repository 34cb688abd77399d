"""The `positron` command: one subcommand for each step from a text file to a verified bitstream.

A subcommand is a module of `scripts.commands` with `add_arguments(parser)` and
`run(arguments) -> int` (the exit status). Its docstring is its help text. Only the chosen one is
imported, and what an extra of the installation brings is imported by `run` alone: help needs no
extra, and what `scripts.requirements` says is missing is named before anything begins.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from types import ModuleType

from scripts import config, process
from scripts.next_steps import next_command, run_of
from scripts.process import EXIT_INTERRUPTED

COMMANDS = (
    "train",
    "import",
    "generate",
    "quantize",
    "evaluate",
    "simulate",
    "synthesize",
    "export",
    "export-verilog",
    "report",
    "demo",
    "prove",
    "campaign",
    "netlist",
    "cores",
    "benchmark",
    "load",
    "selftest",
    "host",
    "doctor",
)
COMPLETION = "_ARGCOMPLETE"  # set by the shell's completion
DISTRIBUTION = "positron-transformer"
HELP_WIDTH = 79  # of lines that argparse does not fold
# Exceptions for user errors and missing tools; any other is a bug and shows its traceback.
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
  positron train --text story.txt
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
    if COMPLETION in os.environ:
        words = os.environ.get("COMP_LINE", "").split()[1:]
    name = next((word for word in words if not word.startswith("-")), None)
    command = import_command(name) if name in COMMANDS else None
    parser = build_parser(name, command)
    if COMPLETION in os.environ:
        complete(parser)
    if config.OPTION in " ".join(words):
        # not above: `scripts`, which takes Ctrl-C over, has to be imported before NumPy
        from model.errors import InputError

        try:
            config.take_config(parser, words)
        except (InputError, OSError) as error:
            return fail(describe(error) if isinstance(error, OSError) else str(error))
    arguments = parse(parser, words)
    # `positron` alone: argparse lets a missing subcommand pass so that help can be shown
    if command is None:
        build_parser(None, None).print_help()
        return 2
    lacking = what_is_missing(" ".join(filter(None, (name, getattr(arguments, "benchmark", None)))))
    return fail(lacking) if lacking else execute(command, arguments)


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell, which asks what can follow, and end; without argcomplete answer nothing."""
    with contextlib.suppress(ImportError):
        import argcomplete

        argcomplete.autocomplete(parser)
    sys.exit(EXIT_FAILURE)


def what_is_missing(name: str) -> str:
    """Return a sentence about the Python packages that a command lacks; empty if none."""
    from scripts.requirements import how_to_install, missing_packages

    missing = missing_packages(name)
    if not missing:
        return ""
    return (
        f"`positron {name}` needs Python packages that are not installed: {', '.join(missing)}; "
        f"install them: {how_to_install(missing)}"
    )


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments; unknown options are refused with the usage of their command."""
    arguments, unknown = parser.parse_known_args(words)
    if unknown:  # argparse itself hands them up to the outermost parser
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments


def import_command(name: str) -> ModuleType:
    """Import the module of a subcommand, `benchmark NAME` among them."""
    return importlib.import_module(f"scripts.{'.'.join(_place(name))}")


def _place(name: str) -> tuple[str, str]:
    """Return folder and module of a subcommand."""
    command, _, benchmark = name.partition(" ")
    module = "import_model" if command == "import" else command.replace("-", "_")  # a keyword
    return ("benchmarks", benchmark) if benchmark else ("commands", module)


def build_parser(name: str | None, command: ModuleType | None) -> argparse.ArgumentParser:
    """Return the parser of all subcommands, with the arguments of the one that is used."""
    parser = argparse.ArgumentParser(
        prog="positron",
        description="From a text file to a verified FPGA bitstream of a transformer.",
        epilog=EPILOG.format(commands=overview()),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(parser=parser)
    parser.add_argument("--version", action="version", version=version())
    subparsers = parser.add_subparsers(metavar="COMMAND", dest="command", help="one of those below; each has --help")
    for other in COMMANDS:
        subparser = add_command(subparsers, other, help_text(other))
        if other == name and command is not None:
            command.add_arguments(subparser)
    return parser


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Folds paragraphs of a description; leaves indented lines (examples, lists) as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(part if "\n  " in part else fill(part, width) for part in paragraphs)


def add_command(subparsers: argparse._SubParsersAction, name: str, description: str) -> argparse.ArgumentParser:
    """Add the parser of a subcommand; the arguments that it returns say that it was the one."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, description=description, formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.set_defaults(parser=parser)
    config.add_config_argument(parser)
    return parser


def version() -> str:
    """Return the versions of this project and of Python."""
    try:
        installed = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        installed = "(not installed)"
    return f"positron {installed}, Python {platform.python_version()}"


def overview(names: Sequence[str] = COMMANDS, parent: str = "") -> str:
    """Return a folded line for each command or subcommand: name, first sentence of its help."""
    width = max(map(len, names))
    return "\n".join(
        fill(
            help_text(f"{parent} {name}".strip()).partition(".\n")[0].partition(". ")[0],
            HELP_WIDTH,
            initial_indent=f"  {name:<{width}}  ",
            subsequent_indent=" " * (width + 4),
        )
        for name in names
    )


def help_text(name: str) -> str:
    """Return the docstring of a subcommand's module without importing it."""
    folder, module = _place(name)
    source = (Path(__file__).parent / folder / f"{module}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def execute(command: ModuleType, arguments: argparse.Namespace) -> int:
    """Run a subcommand; what a user did wrong becomes one line on stderr and an exit status."""
    try:
        process.during_command()
        status = command.run(arguments)
        sys.stdout.flush()
        if status == 0:
            conclude(command, arguments)
        return status
    except BrokenPipeError:
        # The reader (`| head`) has closed the pipe. Python flushes stdout at exit and would raise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except KeyboardInterrupt:
        process.after_command()
        advice = getattr(command, "how_to_resume", lambda _: "nothing was left half written; run the command again")
        print(f"\nstopped: {advice(arguments)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        return fail(describe(error))
    except user_errors() as error:
        return fail(str(error))
    finally:
        process.after_command()


def conclude(command: ModuleType, arguments: argparse.Namespace) -> None:
    """After a command that succeeded: keep the options of `--config`, and say what comes next."""
    if "command" not in arguments:
        return
    if (run := run_of(command, arguments)) is not None and arguments.config is not None:
        config.keep_config(arguments, run)
    if (line := next_command(arguments, run)) is not None:
        # not on standard output, which may be a text or a table that is piped
        print(f"Next: {line}", file=sys.stderr)


def describe(error: OSError) -> str:
    """Return what a file system refused, and where; for a rename, the target."""
    name = error.filename if error.filename2 is None else error.filename2
    return f"{'' if name is None else f'{name}: '}{error.strerror or error}"


def user_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that report a user's mistake, of the packages that were imported."""
    return tuple(getattr(sys.modules[module], name) for module, name in USER_ERRORS if module in sys.modules)


def fail(message: str) -> int:
    """Print a message to stderr, and return the exit status of a failure."""
    print(f"error: {message.strip()}", file=sys.stderr)
    return EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
