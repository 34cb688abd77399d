"""Block RAM's own output registers: a register directly after a read port becomes the RAM's.

An ECP5 block RAM answers 5.8 ns after the clock edge, with its output register switched on well
under half of that (FPGA-TN-02204). Yosys maps every RAM without it, so this is done between
synthesis and place and route, on Yosys's JSON: where every bit that a port reads goes to one
flip-flop and nowhere else, and these flip-flops do nothing but follow (under one enable, if they
have any), the port gets `REGMODE` OUTREG, their enable, and drives what they drove.
"""

from collections import defaultdict

BLOCK_RAM = "DP16KD"
FLIP_FLOP = "TRELLIS_FF"
# What a flip-flop that only follows has: no inversion of clock or enable, zero at power-up as the
# RAM's register.
FOLLOWS = {"CEMUX": ("1", "CE"), "CLKMUX": ("CLK",), "REGSET": ("RESET",)}


def fold_output_registers(module: dict) -> int:
    """Move registers into the block RAMs of a flat module.

    Args:
        module: The module in Yosys's JSON (`design["modules"][name]`), changed in place.

    Returns:
        The number of flip-flops that are no longer needed.
    """
    cells = module["cells"]
    sinks = _sinks(module)
    folded = 0
    for ram in [cell for cell in cells.values() if cell["type"] == BLOCK_RAM]:
        for sides in _ports(ram):
            followers = _followers(cells, sinks, ram, sides)
            if not followers:
                continue
            example = cells[next(iter(followers.values()))]
            enable, clock = _enable(example), example["connections"]["CLK"]
            for port, name in followers.items():
                ram["connections"][port] = cells.pop(name)["connections"]["Q"]
            for side in sides:
                ram["parameters"][f"REGMODE_{side}"] = "OUTREG"
                ram["connections"][f"OCE{side}"] = enable
                ram["connections"][f"CLK{side}"] = clock
            folded += len(followers)
    return folded


def _sinks(module: dict) -> dict[int, list[tuple[str, str]]]:
    """Return who reads each net: cell and port, or the module's own output."""
    sinks = defaultdict(list)
    for name, cell in module["cells"].items():
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] != "output":
                for bit in bits:
                    sinks[bit].append((name, port))
    for port, body in module["ports"].items():
        if body["direction"] != "input":
            for bit in body["bits"]:
                sinks[bit].append(("", port))
    return sinks


def _ports(ram: dict) -> tuple[str, ...]:
    """Return the sides on whose pins each read port stands: a port of 36 bits takes both."""
    widths = (ram["parameters"].get(f"DATA_WIDTH_{side}", "0") for side in "AB")
    return ("AB",) if any(int(width, 2) == 36 for width in widths) else ("A", "B")


def _followers(cells: dict, sinks: dict, ram: dict, sides: str) -> dict[str, str]:
    """Return the flip-flop behind each output that is read; empty unless all can be folded."""
    connections = ram["connections"]
    for side in sides:
        if ram["parameters"].get(f"REGMODE_{side}", "NOREG") != "NOREG":
            return {}
        if connections.get(f"RST{side}", ["0"]) != ["0"]:
            return {}
    # Side A of a table of 36 bits, which nobody writes, has no clock yet; the half of the register
    # that is on its pins needs one.
    clocks = [connections[f"CLK{side}"] for side in sides if connections[f"CLK{side}"] not in (["0"], ["1"])]
    followers = {}
    for port, bits in connections.items():
        if not port.startswith(tuple(f"DO{side}" for side in sides)) or not bits or not sinks.get(bits[0]):
            continue
        readers = sinks[bits[0]]
        name, pin = readers[0]
        if len(readers) != 1 or pin != "DI" or cells[name]["type"] != FLIP_FLOP:
            return {}
        flip_flop, wires = cells[name], cells[name]["connections"]
        # Yosys ends a text that could be taken for a number with a space.
        if any(flip_flop["parameters"].get(key, values[0]).strip() not in values for key, values in FOLLOWS.items()):
            return {}
        if wires.get("LSR", ["0"]) != ["0"] or not clocks or any(wires["CLK"] != clock for clock in clocks):
            return {}
        followers[port] = name
    enables = {tuple(_enable(cells[name])) for name in followers.values()}
    return followers if len(enables) == 1 else {}


def _enable(flip_flop: dict) -> list:
    """Return what enables a flip-flop: a net, or "1"."""
    return flip_flop["connections"]["CE"] if flip_flop["parameters"].get("CEMUX", "1").strip() == "CE" else ["1"]
