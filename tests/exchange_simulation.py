"""A finished bitstream's block RAM contents in its netlist, simulated on a serial wire."""

import json
import re
import subprocess
import sys
from pathlib import Path

from link_campaign import FaultyPort
from wire_bench import SOURCE, WireBoard

from fixedpoint.generation import generate_batch
from hdl.board.decoder_host import DecoderHost
from hdl.cores.uart import FRAME_BITS, baud_divisor
from hdl.tools.exchange import BLOCK_RAM, NOTE_FILE, PAIR_BITS, PAIRS, PARAMETERS, WORD_BITS, netlist_digest
from hdl.tools.output_registers import fold_output_registers
from hdl.tools.synthesis import READ_SCRIPT, read_report
from hdl.tools.toolchain import require_tool, run_tool
from sim.netlist import FAMILIES, cell_models
from sim.simulators.builds import simulator_environment
from sim.simulators.decoder_process import stream_tokens
from sim.simulators.native_bench import OPTIONS

LONGEST_TOKEN = 3000  # cycles
# An OrangeCrab's pins; its own clock is the circuit's, so there is no PLL.
TOP = """
module top(input clk, input rst, input rx, output tx);
    decoder board(.clk_0__io(clk), .button_0__io(~rst), .uart_0__rx__io(rx), .uart_0__tx__io(tx));
endmodule
"""


def tables_in_bitstream(bitstream, work):
    """Return the contents of a bitstream's block RAMs, by their WID."""
    unpack = Path(sys.executable).with_name("yowasp-ecpunpack")
    subprocess.run([unpack, "--input", bitstream, "--textcfg", "unpacked.config"], cwd=work, check=True)
    config = (work / "unpacked.config").read_text(encoding="utf-8")
    tables = re.findall(r"^\.bram_init (\d+)\n((?:[0-9a-f ]+\n)*)", config, re.MULTILINE)
    return {int(number): [int(word, 16) for word in text.split()] for number, text in tables}


def initial_values(words):
    """Return the parameters of a block RAM with these words."""
    parameters = {}
    for number in range(PARAMETERS):
        value = 0
        for place in range(PAIRS):
            low, high = words[2 * (number * PAIRS + place) :][:2]
            value |= (low | high << WORD_BITS) << (place * PAIR_BITS)
        parameters[f"INITVAL_{number:02X}"] = f"{value:0{PAIRS * PAIR_BITS}b}"
    return parameters


def netlist_of(circuit, work, name="decoder"):
    """Return the netlist of a circuit's RTLIL, as it is placed and routed."""
    (work / f"{name}.il").write_text(circuit, encoding="utf-8")
    run_tool("yosys", ("-q", "-p", f"{READ_SCRIPT.format(name=name)}; synth_ecp5 -top {name} -json {name}.json"), work)
    whole = json.loads((work / f"{name}.json").read_text(encoding="utf-8"))
    fold_output_registers(whole["modules"][name])
    return whole


def exchanged_netlist(original, exchanged, work, name="decoder"):
    """Return the netlist of the bitstream in directory `original` with the block RAM contents of
    the bitstream in `exchanged`.
    """
    whole = netlist_of((original / f"{name}.il").read_text(encoding="utf-8"), work, name)
    note = json.loads((original / NOTE_FILE).read_text(encoding="utf-8"))
    design = whole["modules"][name]
    assert netlist_digest(design) == note["netlist_sha256"]
    tables = tables_in_bitstream((exchanged / f"{name}.bit").resolve(), work)
    for cell, body in design["cells"].items():
        if body["type"] == BLOCK_RAM:
            body["parameters"] |= initial_values(tables[note["block_rams"][cell]])
    return whole


def _drop_pads(design):
    """Join a netlist's ports to what is behind its pads, which are two-way in their models."""
    for name, cell in list(design["cells"].items()):
        if cell["type"] == "TRELLIS_IO":
            wires = cell["connections"]
            inner = wires["O"] if cell["parameters"]["DIR"].strip() == "INPUT" else wires["I"]
            for named in (*design["ports"].values(), *design["netnames"].values()):
                if named["bits"] == wires["B"]:
                    named["bits"] = inner
            del design["cells"][name]


class NetlistBoard(WireBoard):
    """A board's netlist in Verilator, on a serial wire.

    Args:
        whole: What Yosys wrote, with the module `decoder`.
        divisor: Its clock cycles of a bit.
        quiet_cycles: See `WireBoard`.
        work: Where it is compiled.
    """

    def __init__(self, whole, divisor, quiet_cycles, work):
        _drop_pads(whole["modules"]["decoder"])
        (work / "netlist.json").write_text(json.dumps(whole), encoding="utf-8")
        script = "read_json netlist.json; hierarchy -top decoder; delete t:$check t:$print; write_verilog -noattr -noexpr netlist.v"
        run_tool("yosys", ("-q", "-p", script), work)
        (work / "cells.v").write_text(cell_models(FAMILIES["ecp5"]), encoding="utf-8")
        (work / "top.v").write_text(TOP, encoding="utf-8")
        (work / SOURCE.name).write_text(SOURCE.read_text(encoding="utf-8"), encoding="utf-8")
        command = [
            require_tool("verilator"),
            *OPTIONS,
            "-MAKEFLAGS",
            "OPT_FAST=-O1",
            "top.v",
            "netlist.v",
            "cells.v",
            SOURCE.name,
        ]
        subprocess.run(command, cwd=work, env=simulator_environment(), check=True, capture_output=True)
        self._process = subprocess.Popen(
            [work / "objects" / "bench", str(divisor), str(quiet_cycles + FRAME_BITS * divisor)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=simulator_environment(),
        )


def check_exchanged_decoder(original, exchanged, model, digest, num_tokens, work):
    """Let a bitstream write text in simulation and compare it with a model's.

    Args:
        original: The directory of a decoder's bitstream, which keeps what an exchange needs.
        exchanged: That of the bitstream whose block RAM contents the netlist gets.
        model: What these compute.
        digest: What they are called.
        num_tokens: How many tokens follow the first.
        work: A directory for the simulation.
    """
    report = read_report(exchanged)
    divisor = baud_divisor(next(iter(report.clocks)).required_mhz * 1e6, report.baud)
    whole = exchanged_netlist(original, exchanged, work)
    with NetlistBoard(whole, divisor, LONGEST_TOKEN, work) as board:
        host = DecoderHost(FaultyPort(board, 0.0, seed=1))
        host.connect(digest, model.context_length)
        sequence = [1]
        stream = stream_tokens(host, model, sequence)
        for _ in range(num_tokens):
            next(stream)
    assert sequence[1:] == generate_batch(model, [[1]], num_tokens, temperature=0.0)[0]
