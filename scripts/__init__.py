"""Positron: scripts."""

import sys


def _is_the_program() -> bool:
    """Whether this process runs a command: `positron`, `python -m scripts.cli`, a file here."""
    # "-m" while Python looks for the module that `python -m` names
    started = getattr(sys, "argv", [""])[0]
    file = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    named = started.replace("\\", "/").removesuffix(".exe").endswith("/positron")
    return started == "-m" or named or file.startswith(__path__[0])


def _start() -> None:
    """Prepare the process before slow imports; refuse packages that are not this project's."""
    if _is_the_program():
        from scripts import process

        process.prepare()
    from positron_start import refuse_shadowing

    refuse_shadowing()


_start()
