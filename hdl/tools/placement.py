"""Where a placed design's cores lie, what each takes, and which ones its slowest path crosses."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

PLACEMENT_FILE = "placement.json"
# Kinds of cells in nextpnr's netlist, by the names in a `SynthesisReport`.
KINDS = {
    "TRELLIS_COMB": "luts",
    "TRELLIS_FF": "flip_flops",
    "DP16KD": "block_rams",
    "MULT18X18D": "multipliers",
}
OUTER = ("core", "accelerator", "machine")  # levels that say nothing
_BEL = re.compile(r"X(\d+)/Y(\d+)/")
_CELL = re.compile(r"_(TRELLIS_|LUT4_|CCU2C_|PFUMX_|L6MUX21_|MULT18X18D_|DP16KD_).*")


def core_of(cell: str) -> str:
    """Return the core that a cell belongs to, by its name: synthesis names cells after the net that
    they drive, and nets after the place of their core.

    Cores that differ by a number are one (`softmax_0`); a cell of none is the top level's.
    """
    parts = _CELL.sub("", cell).split(".")
    while len(parts) > 1 and parts[0] in OUTER:
        parts = parts[1:]
    if len(parts) == 1:
        return "top level"
    return re.sub(r"_\d+$", "", parts[0])


def summarize(design: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the pictures of a placed design need.

    Args:
        design: The module in the JSON that nextpnr writes.
        report: nextpnr's report.

    Returns:
        `cores`, by name how many of each kind of cell; `tiles`, [x, y, core] of the core that has
        most cells there; `path`, the slowest one, by step {core, net, x, y, nanoseconds, wire}.
    """
    cores: dict[str, Counter[str]] = defaultdict(Counter)
    tiles: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    for name, cell in design["cells"].items():
        kind, place = KINDS.get(cell["type"]), _BEL.match(cell["attributes"].get("NEXTPNR_BEL", ""))
        if kind is None or place is None:
            continue
        core = core_of(name)
        cores[core][kind] += 1
        tiles[int(place[1]), int(place[2])][core] += 1
    order = sorted(cores, key=lambda core: -cores[core]["luts"])
    return {
        "cores": {core: {kind: cores[core][kind] for kind in KINDS.values()} for core in order},
        "tiles": [[x, y, order.index(found.most_common(1)[0][0])] for (x, y), found in sorted(tiles.items())],
        "path": _slowest_path(report),
    }


def _slowest_path(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the path of the clock with the least slack, within it."""
    clocks = {clock: one["achieved"] / one["constraint"] for clock, one in report["fmax"].items()}
    if not clocks:
        return []
    edge = f"posedge {min(clocks, key=lambda clock: clocks[clock])}"
    paths = [one["path"] for one in report["critical_paths"] if one["from"] == edge == one["to"]]
    return [
        {
            "core": core_of(step["from"]["cell"]),
            "net": step.get("net", ""),
            "x": step["to"]["loc"][0],
            "y": step["to"]["loc"][1],
            "nanoseconds": round(step["delay"], 3),
            "wire": step["type"] == "routing",
        }
        for step in (paths[0] if paths else ())
    ]
