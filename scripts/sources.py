"""Which files of this project a command runs, found by following imports.

Imports count wherever they stand, in functions too. A module or a data file that is only named in a
string counts as well: that is how worker processes, C sources and templates are found
(`"model.training.worker_process"`, `with_name("template.html")`).
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from positron_start import PACKAGES, PROJECT


@cache
def source_files(module: str) -> tuple[str, ...]:
    """Return the project's files that importing and running `module` may read, as sorted paths."""
    found: set[Path] = set()
    waiting = [*_module_files(module)]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            if file.suffix == ".py":
                waiting += _needs(file)
    return tuple(sorted(file.relative_to(PROJECT).as_posix() for file in found))


@cache
def _needs(file: Path) -> tuple[Path, ...]:
    """Return the files that a module names: those of the modules that it imports, and data."""
    package = file.parent.relative_to(PROJECT).parts
    needed: list[Path] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                needed += _module_files(alias.name)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join((*parents, *((node.module,) if node.module else ())))
            for alias in node.names:
                needed += _module_files(f"{name}.{alias.name}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            needed += _module_files(node.value, whole=True) if "." in node.value else []
            needed += _data_files().get(node.value, [])
    return tuple(needed)


def _module_files(name: str, whole: bool = False) -> list[Path]:
    """Return the files that importing a module runs, `__init__.py` files included.

    Args:
        name: The module, or something in one.
        whole: Whether `name` must be a module.
    """
    parts = name.split(".")
    if parts[0] not in PACKAGES or not all(part.isidentifier() for part in parts):
        return []
    files: list[Path] = []
    for count in range(1, len(parts) + 1):
        place = PROJECT.joinpath(*parts[:count])
        file = next((file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()), None)
        if file is None:
            return [] if whole else files
        files.append(file)
    return files


@cache
def _data_files() -> dict[str, list[Path]]:
    """Return the data in the packages by name: a file, or the files below a folder of data."""
    found: dict[str, list[Path]] = {}
    for place in (place for package in PACKAGES for place in sorted((PROJECT / package).rglob("*"))):
        if place.suffix != ".py" and place.name != "__pycache__" and not (place / "__init__.py").exists():
            files = sorted(place.rglob("*")) if place.is_dir() else [place]
            found.setdefault(place.name, []).extend(file for file in files if file.is_file())
    return found
