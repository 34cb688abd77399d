"""Contents of block RAMs in a finished ECP5 design: other weights without place and route.

Yosys's netlist has the contents as parameters of the block RAMs, and nextpnr's configuration as a
table for each, whose number it calls WID. So if two netlists differ in these parameters alone, the
tables are all that has to change.
"""

import gzip
import hashlib
import json
import re
import shutil
from pathlib import Path

from ..errors import CircuitError
from .memory_check import in_block_ram, memories

NOTE_FILE = "exchange.json"
ROUTED_FILE = "routed.json"
BLOCK_RAM = "DP16KD"
WORDS, WORD_BITS, WORDS_A_LINE = 2048, 9, 8
# A parameter has 16 pairs of words of 9 bits, each pair padded to 20 bits.
PARAMETERS, PAIRS, PAIR_BITS = 64, 16, 20
# Where a decoder's tables stand that differ between models of the same sizes and formats.
_TABLES = re.compile(r"\.machine\.(words|cache|requantize|embedding|norms|rotate)(\.|$)")
_MODULE = re.compile(r"^module \\(\S+)$.*?^end$", re.MULTILINE | re.DOTALL)
_MEMORY = re.compile(
    r'^(?:  attribute \\ram_style "\S+"\n)?((?:  attribute \S+ .*\n)*  memory .*\\(\S+)\s*)$', re.MULTILINE
)
# of memories, and of block RAMs that the circuit itself is made of
_CONTENTS = re.compile(r"(?<=connect \\DATA )\d+'[01x]+(?=\n    connect \\EN )|(?<=parameter \\INITVAL_..) .*")
_INITIAL = re.compile(r"^  cell \$meminit.*?^  end$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r'parameter \\MEMID "\\{1,2}(\S+)"')
_TABLE = re.compile(r"^\.bram_init (\d+)\n(?:[0-9a-f ]+\n)*", re.MULTILINE)


def tables_in_block_ram(rtlil: str) -> str:
    """Return a circuit whose decoder's tables are to be block RAM, whatever their size."""
    intents = memories(rtlil)

    def in_module(match: re.Match[str]) -> str:
        path = match.group(1)
        if not _TABLES.search(path):
            return match.group()

        def styled(memory: re.Match[str]) -> str:
            if intents[f"{path}.{memory.group(2)}"].written:
                return memory.group()
            return f'  attribute \\ram_style "block"\n{memory.group(1)}'

        return _MEMORY.sub(styled, match.group())

    return _MODULE.sub(in_module, rtlil)


def contents_of(design: dict) -> dict[str, list[int]]:
    """Return the words of each block RAM of a netlist, by the cell's name."""
    return {name: _words(cell["parameters"]) for name, cell in design["cells"].items() if cell["type"] == BLOCK_RAM}


def _words(parameters: dict[str, str]) -> list[int]:
    words = []
    for number in range(PARAMETERS):
        value = int(parameters.get(f"INITVAL_{number:02X}", "0").replace("x", "0"), 2)
        for _ in range(PAIRS):
            words += [value & (1 << WORD_BITS) - 1, value >> WORD_BITS & (1 << WORD_BITS) - 1]
            value >>= PAIR_BITS
    return words


def netlist_digest(design: dict) -> str:
    """Return the SHA-256 of a netlist without the contents of its block RAMs."""
    cells = {
        name: {**cell, "parameters": {key: value for key, value in cell["parameters"].items() if "INITVAL_" not in key}}
        for name, cell in design["cells"].items()
    }
    return hashlib.sha256(json.dumps({**design, "cells": cells}, sort_keys=True).encode()).hexdigest()


def _netlist(work: Path, name: str) -> dict:
    return json.loads((work / f"{name}.json").read_text(encoding="utf-8"))["modules"][name]


def keep(work: Path, name: str) -> None:
    """Write down what an exchange needs of a design that nextpnr has just routed.

    Args:
        work: Holds netlist, NAME.config and `ROUTED_FILE`, which is removed; NAME.config.gz and
            `NOTE_FILE` are written.
        name: The design's.
    """
    modules = json.loads((work / ROUTED_FILE).read_text(encoding="utf-8"))["modules"].values()
    cells = {cell: body for module in modules for cell, body in module["cells"].items()}
    numbers = {cell: int(body["attributes"]["WID"], 2) for cell, body in cells.items() if body["type"] == BLOCK_RAM}
    (work / ROUTED_FILE).unlink()
    note = {"netlist_sha256": netlist_digest(_netlist(work, name)), "block_rams": numbers}
    (work / NOTE_FILE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    # without the time, so that the same design is the same file
    (work / f"{name}.config.gz").write_bytes(gzip.compress((work / f"{name}.config").read_bytes(), mtime=0))


def exchanged(config: str, numbers: dict[str, int], contents: dict[str, list[int]]) -> str:
    """Return a configuration with other contents of its block RAMs.

    Args:
        config: nextpnr's.
        numbers: Each block RAM's WID, by its cell's name.
        contents: Each block RAM's words.

    Raises:
        CircuitError: The configuration has other block RAMs.
    """
    tables = {numbers[cell]: words for cell, words in contents.items()}
    found = {int(match.group(1)) for match in _TABLE.finditer(config)}
    if found != set(tables) or len(tables) != len(contents):
        raise CircuitError("the configuration of the bitstream has other block RAMs than its netlist; synthesize again")
    return _TABLE.sub(lambda match: f".bram_init {match.group(1)}\n{_lines(tables[int(match.group(1))])}", config)


def _lines(words: list[int]) -> str:
    rows = (words[start : start + WORDS_A_LINE] for start in range(0, WORDS, WORDS_A_LINE))
    return "".join(" ".join(f"{word:03x}" for word in row) + "\n" for row in rows)


def refuse_other_design(files: dict[str, str], reused: Path, name: str) -> None:
    """Refuse a bitstream of which more than memory contents would have to change.

    Args:
        files: The new design's circuit and constraints, by their suffix.
        reused: The directory of the bitstream.
        name: The design's.

    Raises:
        CircuitError: It is no bitstream of this design that keeps what an exchange needs, or it
            differs otherwise; the message says where.
    """
    if not (reused / NOTE_FILE).is_file():
        raise CircuitError(f"the bitstream in {reused} keeps nothing to exchange; make one that does: --exchangeable")
    before = {suffix: (reused / f"{name}.{suffix}").read_text(encoding="utf-8") for suffix in files}
    if before["lpf"] != files["lpf"]:
        raise CircuitError(f"the bitstream in {reused} is for another board or clock")
    beside = [
        path
        for path, one, other in _differing(before["il"], files["il"])
        if _CONTENTS.sub("", one) != _CONTENTS.sub("", other)
    ]
    if beside:
        raise CircuitError(
            f"more than memory contents would change: {', '.join(beside)}; a size, a format, a shift or the layout is another"
        )


def reuse(work: Path, reused: Path, name: str) -> None:
    """Write the configuration of a bitstream with the contents of another netlist.

    Args:
        work: Holds the new circuit, its netlist and Yosys's log; the configuration is written
            there, and what is kept beside it.
        reused: The directory of the bitstream.
        name: The design's.

    Raises:
        CircuitError: The netlist differs otherwise; the message lists the memories in logic.
    """
    design = _netlist(work, name)
    note = json.loads((reused / NOTE_FILE).read_text(encoding="utf-8"))
    if netlist_digest(design) != note["netlist_sha256"]:
        before, circuit = ((place / f"{name}.il").read_text(encoding="utf-8") for place in (reused, work))
        changed = {
            f"{path}.{memory}"
            for path, one, other in _differing(before, circuit)
            for old, new in zip(_INITIAL.findall(one), _INITIAL.findall(other), strict=True)
            if old != new
            for memory in _NAME.findall(old)
        }
        blocks = in_block_ram((work / "yosys.log").read_text(encoding="utf-8"))
        raise CircuitError(
            f"contents that would change stand in logic: {', '.join(sorted(changed - blocks)) or 'the netlist is another'}"
        )
    kept = gzip.decompress((reused / f"{name}.config.gz").read_bytes()).decode()
    (work / f"{name}.config").write_text(exchanged(kept, note["block_rams"], contents_of(design)), encoding="utf-8")
    for file in (NOTE_FILE, "nextpnr.json", "nextpnr.log", f"{name}.config.gz"):
        shutil.copyfile(reused / file, work / file)


def _differing(before: str, after: str) -> list[tuple[str, str, str]]:
    """Return the modules that differ between two circuits: path and both texts, empty for none."""
    old, new = ({match.group(1): match.group() for match in _MODULE.finditer(text)} for text in (before, after))
    return [
        (path, old.get(path, ""), new.get(path, ""))
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    ]
