"""Start of the `positron` command: the packages must be this project's own.

Their names are ordinary words. A `model.py` where Python looks first, or another distribution's
`scripts`, would end in a traceback. This module stands beside the packages, because it must not be
looked for in one of them.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent
PACKAGES = ("model", "fixedpoint", "hdl", "sim", "scripts")


def find_shadowing() -> str | None:
    """Return a message about the first package whose name something else has taken, or None."""
    for name in PACKAGES:
        if name in sys.modules:
            found = sys.modules[name].__file__
        else:
            spec = importlib.util.find_spec(name)
            found = spec.origin if spec is not None else None
        ours = PROJECT / name / "__init__.py"
        if found is not None and Path(found).resolve() != ours:
            return (
                f"{found} is in the way of this project's package {name} ({ours.parent}): rename or uninstall it, "
                "or start in another directory"
            )
    return None


def refuse_shadowing() -> None:
    """End the program with one line when a package's name is taken.

    Raises:
        SystemExit: It is.
    """
    message = find_shadowing()
    if message is not None:
        sys.exit(f"error: {message}")


def main() -> int:
    """Run the `positron` command and return its exit status."""
    refuse_shadowing()
    from scripts.cli import main as run_command_line

    return run_command_line()
