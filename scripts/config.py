"""A command's options from a TOML file, and the file in which a run keeps those that were used."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.files import atomic_write, read_text

OPTION = "--config"


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--config FILE`."""
    parser.add_argument(
        OPTION, type=Path, metavar="FILE", help="TOML file with options of this command; the command line overrides it"
    )


def take_config(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Make what the file after `--config` says the defaults of the command that `words` name.

    Raises:
        InputError: The file cannot be read, or has an option that the command lacks, or a value
            that the option refuses.
    """
    finder = argparse.ArgumentParser(prog=parser.prog, add_help=False, allow_abbrev=False)
    finder.add_argument(OPTION, type=Path)
    path = finder.parse_known_args(words)[0].config
    if path is None:
        return
    try:
        table = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    rest = iter(words)
    while children := _children(parser):
        name = next((word for word in rest if word in children), None)
        if name is None:
            return
        others = sorted(key for key, value in table.items() if isinstance(value, dict) and key not in children)
        if others:
            raise InputError(f"{path}: there is no command {others[0]!r}")
        own = {key: value for key, value in table.items() if not isinstance(value, dict)}
        parser, table = children[name], {**own, **table.get(name, {})}
    options = _options(parser)
    defaults = {action.dest: action.default for action in options.values()}
    for key, value in table.items():
        action = options.get(key.replace("_", "-"))
        if action is None:
            raise InputError(f"{path}: {parser.prog} has no option {key!r}; it has {', '.join(options)}")
        try:
            action.default, action.required = _read(parser, action, value), False
        except argparse.ArgumentError as error:
            raise InputError(f"{path}: {error}") from None
    parser.set_defaults(defaults_without_config=defaults)


def keep_config(arguments: argparse.Namespace, run: Path) -> None:
    """Write the options that differ from their defaults to RUN/options/COMMAND.toml."""
    lines = []
    for name, action in _options(arguments.parser).items():
        value = getattr(arguments, action.dest)
        if value != arguments.defaults_without_config[action.dest]:
            lines.append(f"{name} = {_write(value)}\n")
    path = run / "options" / f"{arguments.command}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        file.write("".join(lines))


def _children(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return a parser's subcommands."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= action.choices
    return found


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return a command's options by their names without dashes in front."""
    return {
        action.option_strings[-1].removeprefix("--"): action
        for action in parser._actions
        if action.option_strings and action.dest not in ("help", "config", "version")
    }


def _read(parser: argparse.ArgumentParser, action: argparse.Action, value: Any) -> Any:
    """Return what the command line would make of a value."""
    if isinstance(value, bool) and (action.nargs == 0 or (value and action.nargs == "?")):
        return action.const if value else action.default
    several = action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction)
    items = value if isinstance(value, list) and several else [value]
    if action.nargs == 0 or not items or not all(isinstance(item, (str, int, float)) for item in items):
        raise argparse.ArgumentError(action, f"invalid value: {value!r}")
    if any(isinstance(item, bool) for item in items):
        raise argparse.ArgumentError(action, f"invalid value: {value!r}")
    found = [parser._get_value(action, str(item)) for item in items]
    for item in found:
        parser._check_value(action, item)
    return found if several else found[0]


def _write(value: Any) -> str:
    """Return a value as TOML: JSON's numbers, strings, lists and booleans are TOML's too."""
    if isinstance(value, list):
        return f"[{', '.join(map(_write, value))}]"
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(value, ensure_ascii=False)
