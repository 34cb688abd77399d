"""Registers behind block RAMs: which are folded into the RAM, and which must stay."""

import copy

import pytest

from hdl.tools.output_registers import fold_output_registers

CLOCK, ENABLE, ADDRESS = 2, 3, 4


def ram(outputs: dict[str, int], width_a: int = 18, width_b: int = 18) -> dict:
    """A block RAM as Yosys writes it, reading on the given pins."""
    connections = {
        "CLKA": [CLOCK],
        "CLKB": [CLOCK],
        "OCEA": ["0"],
        "OCEB": ["0"],
        "RSTA": ["0"],
        "RSTB": ["0"],
        "ADA5": [ADDRESS],
        **{pin: [net] for pin, net in outputs.items()},
    }
    return {
        "type": "DP16KD",
        "parameters": {
            "REGMODE_A": "NOREG",
            "REGMODE_B": "NOREG",
            "DATA_WIDTH_A": f"{width_a:032b}",
            "DATA_WIDTH_B": f"{width_b:032b}",
        },
        "port_directions": {pin: "output" if pin.startswith("DO") else "input" for pin in connections},
        "connections": connections,
    }


def flip_flop(source: int, target: int, **changes) -> dict:
    """A flip-flop that only follows; `changes` to parameters or connections."""
    parameters = {"CEMUX": "1 ", "CLKMUX": "CLK", "REGSET": "RESET", "LSRMUX": "LSR"}
    connections = {"CLK": [CLOCK], "LSR": ["0"], "DI": [source], "Q": [target]}
    for name, value in changes.items():
        (parameters if name.endswith(("MUX", "SET")) else connections)[name] = value
    directions = {pin: "output" if pin == "Q" else "input" for pin in connections}
    return {"type": "TRELLIS_FF", "parameters": parameters, "port_directions": directions, "connections": connections}


def module(*cells: dict, outputs: tuple[int, ...] = ()) -> dict:
    return {
        "cells": {f"cell_{number}": copy.deepcopy(cell) for number, cell in enumerate(cells)},
        "ports": {"o": {"direction": "output", "bits": list(outputs)}},
    }


def test_registers_behind_one_port_move_into_the_ram():
    design = module(
        ram({"DOA0": 10, "DOA1": 11, "DOB0": 12}), flip_flop(10, 20), flip_flop(11, 21), outputs=(12, 20, 21)
    )
    assert fold_output_registers(design) == 2
    (cell,) = design["cells"].values()
    assert (cell["parameters"]["REGMODE_A"], cell["parameters"]["REGMODE_B"]) == ("OUTREG", "NOREG")
    assert cell["connections"]["DOA0"] == [20] and cell["connections"]["DOA1"] == [21]
    assert cell["connections"]["DOB0"] == [12]
    assert (cell["connections"]["OCEA"], cell["connections"]["OCEB"]) == (["1"], ["0"])


def test_an_enable_of_all_becomes_the_rams():
    enabled = {"CEMUX": "CE", "CE": [ENABLE]}
    design = module(ram({"DOB0": 10, "DOB1": 11}), flip_flop(10, 20, **enabled), flip_flop(11, 21, **enabled))
    assert fold_output_registers(design) == 2
    assert design["cells"]["cell_0"]["connections"]["OCEB"] == [ENABLE]


def test_a_port_of_36_bits_stands_on_both_sides():
    wide = ram({"DOA0": 10, "DOB0": 11}, width_b=36)
    assert fold_output_registers(module(wide, flip_flop(10, 20), outputs=(11,))) == 0
    design = module(wide, flip_flop(10, 20), flip_flop(11, 21))
    assert fold_output_registers(design) == 2
    parameters = design["cells"]["cell_0"]["parameters"]
    assert (parameters["REGMODE_A"], parameters["REGMODE_B"]) == ("OUTREG", "OUTREG")


def test_a_table_of_36_bits_has_one_clock_and_both_sides_get_it():
    """Nobody writes a table: Yosys leaves side A, whose pins show half of each word, without a
    clock.
    """
    table = ram({"DOA0": 10, "DOB0": 11}, width_a=36, width_b=36)
    table["connections"]["CLKA"] = ["0"]
    design = module(table, flip_flop(10, 20), flip_flop(11, 21))
    assert fold_output_registers(design) == 2
    connections = design["cells"]["cell_0"]["connections"]
    assert (connections["CLKA"], connections["CLKB"]) == ([CLOCK], [CLOCK])
    table["connections"]["CLKB"] = ["0"]
    assert fold_output_registers(module(table, flip_flop(10, 20), flip_flop(11, 21))) == 0


@pytest.mark.parametrize(
    "second",
    [
        flip_flop(11, 21, CLK=[9]),
        flip_flop(11, 21, LSR=[9]),
        flip_flop(11, 21, CEMUX="CE", CE=[ENABLE]),
        flip_flop(11, 21, CEMUX="INV", CE=[ENABLE]),
        flip_flop(11, 21, CLKMUX="INV"),
        flip_flop(11, 21, REGSET="SET"),
        flip_flop(9, 21, CE=[11], CEMUX="CE"),
    ],
    ids=["clock", "reset", "enable", "inverted enable", "inverted clock", "set at power-up", "not data"],
)
def test_a_register_that_does_more_stays_and_so_do_its_neighbours(second):
    design = module(ram({"DOA0": 10, "DOA1": 11}), flip_flop(10, 20), second)
    before = copy.deepcopy(design)
    assert fold_output_registers(design) == 0
    assert design == before


def test_an_output_that_is_read_elsewhere_too_stays():
    assert fold_output_registers(module(ram({"DOA0": 10}), flip_flop(10, 20), flip_flop(10, 21))) == 0
    assert fold_output_registers(module(ram({"DOA0": 10}), flip_flop(10, 20), outputs=(10,))) == 0


def test_a_ram_that_resets_its_output_or_has_the_register_on_stays():
    resetting = ram({"DOA0": 10})
    resetting["connections"]["RSTA"] = [9]
    assert fold_output_registers(module(resetting, flip_flop(10, 20))) == 0
    registered = ram({"DOA0": 10})
    registered["parameters"]["REGMODE_A"] = "OUTREG"
    assert fold_output_registers(module(registered, flip_flop(10, 20))) == 0
