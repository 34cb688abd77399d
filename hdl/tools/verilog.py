"""Cores as plain Verilog for other people's projects: the module, a description of its interface,
and a test bench that uses it.
"""

import dataclasses
import inspect
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl import Shape, ShapeLike
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In

from fixedpoint import QFormat

from ..errors import CircuitError
from ..parts.payload import FixedPointShape, check_connections, payload_shape
from .toolchain import run_tool

# Processes become assignments, because `always @*` waits for a change that never comes where
# nothing but initial values is read. Assertions are left out: they are SystemVerilog. Nothing may
# simplify the operators again once their widths are explicit. Submodules that nothing uses are left
# out at the end: else each of them were another top module.
OPERAND_WIDTHS = Path(__file__).with_name("operand_widths.v")
YOSYS_SCRIPT = (
    "read_rtlil core.il; delete t:$check t:$print; proc; pmuxtree; opt_expr; opt_clean -purge; memory_collect; "
    f"techmap -map {OPERAND_WIDTHS.name}; opt_clean -purge; hierarchy -top MODULE; write_verilog -noattr core.v"
)
CLOCK_HALF_PERIOD = 5  # ns, of no consequence
RESET_CYCLES = 4
IDLE_CYCLES = 64
WATCHDOG_CYCLES = 10_000

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_NESTED = re.compile(r"^(?:module|  cell) \\[^\s.]+\.\S+", re.MULTILINE)
_MODULE = re.compile(r"^module \\(\S+)$(.*?)^end$", re.MULTILINE | re.DOTALL)
_PORT = re.compile(
    r"^  wire\s+(?:width (\d+)\s+)?(?:signed\s+)?(input|output) \d+\s+(?:signed\s+)?\\(\S+)$", re.MULTILINE
)


@dataclass(frozen=True)
class VerilogPort:
    """A port of a Verilog module.

    Attributes:
        name: Its name.
        width: Bits.
        is_input: Into the module.
    """

    name: str
    width: int
    is_input: bool

    @property
    def range(self) -> str:
        """The declaration's range with a blank after it, empty for one bit."""
        return f"[{self.width - 1}:0] " if self.width > 1 else ""


@dataclass(frozen=True)
class StreamPort:
    """A stream of a component: its name, its payload's shape, whether it is an input."""

    name: str
    shape: ShapeLike
    is_input: bool

    @property
    def width(self) -> int:
        """Bits of the payload."""
        return Shape.cast(self.shape).width


def stream_ports(component: wiring.Component) -> list[StreamPort]:
    """Return a component's streams in the order of its signature."""
    ports = []
    for name, member in component.signature.members.items():
        if member.is_signature and isinstance(member.signature, stream.Signature):
            ports.append(StreamPort(name, payload_shape(getattr(component, name)), member.flow == In))
    return ports


def ports_of(text: str, module: str) -> list[VerilogPort]:
    """Return the ports of a module of an RTLIL text; `clk` and `rst` are among them where the
    circuit has registers.
    """
    body = next(body for name, body in _MODULE.findall(text) if name == module)
    return [VerilogPort(name, int(width or 1), way == "input") for width, way, name in _PORT.findall(body)]


def to_plain_verilog(component: wiring.Component, module: str) -> tuple[str, list[VerilogPort]]:
    """Return a component as Verilog-2001, without assertions and vendor cells, and the ports of its
    top module.

    Every submodule is `MODULE__PATH`, so components of different names stand in one design.

    Raises:
        CircuitError: Ports of different formats are joined.
        CircuitError: The name is no plain identifier of Verilog.
        ToolError: Yosys is missing or failed.
    """
    if not _IDENTIFIER.fullmatch(module):
        raise CircuitError(f"a module's name has letters, digits and _ and begins with no digit; got {module!r}")
    check_connections(component)
    text = rtlil.convert(component, name=module, emit_src=False)
    # Amaranth joins the names of nested modules with dots, which every use would have to escape.
    text = _NESTED.sub(lambda match: match[0].replace(".", "__"), text)
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        (directory / "core.il").write_text(text, encoding="utf-8")
        shutil.copy(OPERAND_WIDTHS, directory)
        run_tool("yosys", ("-q", "-p", YOSYS_SCRIPT.replace("MODULE", module)), directory)
        written = (directory / "core.v").read_text(encoding="utf-8")
    if f"\nmodule {module}(" not in written:  # Yosys escapes what is a keyword
        raise CircuitError(f"a module cannot be called {module}: the word means something in Verilog")
    # The first line names the machine that Yosys was built on.
    return f"// Made from Amaranth by Positron.\n{written.partition(chr(10))[2]}", ports_of(text, module)


def testbench(
    module: str,
    component: wiring.Component,
    ports: Sequence[VerilogPort],
    counts: Mapping[str, int],
    *,
    wires: Mapping[str, str],
    constants: Mapping[str, int],
) -> str:
    """Return a Verilog-2001 test bench that feeds a module from files of hexadecimal words and
    compares what comes out.

    It reads `PORT.mem` for each stream, prints a line that begins with PASS or FAIL, and ends.

    Args:
        module: The module's name; the bench's is `MODULE_testbench`.
        component: The component that the module was made from.
        ports: The module's ports.
        counts: Words in each stream's file.
        wires: Plain inputs that plain outputs drive: input → output.
        constants: Values of the other plain inputs.
    """
    streams = stream_ports(component)
    inputs = [port for port in streams if port.is_input]
    outputs = [port for port in streams if not port.is_input]
    widths = {port.name: port.range for port in ports}
    lines = [
        f"// Feeds {module} with golden vectors and compares every result. In this directory:",
        f"//   with Icarus Verilog: iverilog -g2005 -o bench {module}.v {module}_testbench.v && vvp -n bench",
        f"//   with Verilator: {_verilator_command(module)}",
        "// +stall=N, percent of the cycles in which a source or a sink pauses, and +seed=N are arguments of the program.",
        "`timescale 1ns / 1ps",
        "",
        f"module {module}_testbench;",
        "    reg clk = 0, rst = 1;",
        "    integer stall, seed, cycles = 0, quiet = 0;",
        '    initial if (!$value$plusargs("stall=%d", stall)) stall = 25;',
        '    initial if (!$value$plusargs("seed=%d", seed)) seed = 1;',
        f"    always #{CLOCK_HALF_PERIOD} clk = ~clk;",
        "",
    ]
    for port in inputs:
        lines += [
            f"    reg {port.name}__valid = 0;",
            f"    reg {widths[f'{port.name}__payload']}{port.name}__payload = 0;",
            f"    wire {port.name}__ready;",
        ]
    for port in outputs:
        lines += [
            f"    wire {port.name}__valid;",
            f"    wire {widths[f'{port.name}__payload']}{port.name}__payload;",
            f"    reg {port.name}__ready = 0;",
        ]
    handled = {f"{port.name}__{part}" for port in streams for part in ("valid", "ready", "payload")} | {"clk", "rst"}
    plain = [port for port in ports if port.name not in handled]
    sources = {**{name: str(value) for name, value in constants.items()}, **wires}
    lines += [f"    wire {port.range}{port.name};" for port in plain]
    lines += [f"    assign {port.name} = {sources[port.name]};" for port in plain if port.is_input]
    lines += ["", f"    {module} core ("]
    lines += [",\n".join(f"        .{port.name}({port.name})" for port in ports), "    );", ""]
    for port in streams:
        what = "to give" if port.is_input else "to expect"
        lines += [
            f"    // Words {what} on {port.name}, and how many of them are done.",
            f"    reg {widths[f'{port.name}__payload']}{port.name}_words [0:{max(counts[port.name] - 1, 0)}];",
            f"    integer {port.name}_done = 0;",
        ]
        if port.is_input:
            lines.append(f"    integer {port.name}_offered = 0;")
        lines += [f'    initial $readmemh("{port.name}.mem", {port.name}_words);', ""]
    for port in inputs:
        lines += _source(port, counts[port.name])
    for port in outputs:
        lines += _sink(port, counts[port.name])
    done = " && ".join(f"{port.name}_done == {counts[port.name]}" for port in streams)
    transfer = " || ".join(f"({port.name}__valid && {port.name}__ready)" for port in streams)
    counted = ", ".join(f"{port.name} %0d of {counts[port.name]}" for port in streams)
    numbers = ", ".join(f"{port.name}_done" for port in streams)
    lines += [
        "    // Reset for some cycles; then run until no word was transferred for a while.",
        "    always @(posedge clk) begin",
        "        cycles <= cycles + 1;",
        f"        rst <= cycles < {RESET_CYCLES};",
        f"        quiet <= ({transfer}) ? 0 : quiet + 1;",
        f"        if ({done} && quiet > {IDLE_CYCLES}) begin",
        f'            $display("PASS: {counted}, in %0d cycles", {numbers}, cycles);',
        "            $finish;",
        "        end",
        f"        if (quiet > {WATCHDOG_CYCLES}) begin",
        f'            $display("FAIL: no transfer: {counted}", {numbers});',
        "            $finish;",
        "        end",
        "    end",
        "endmodule",
        "",
    ]
    return "\n".join(lines)


def _verilator_command(module: str) -> str:
    options = f"--binary --timing -Wno-fatal --top {module}_testbench -o bench"
    return f"verilator {options} {module}.v {module}_testbench.v && obj_dir/bench"


def _source(port: StreamPort, count: int) -> list[str]:
    """Offer words; hold each until it is taken; random payloads in between."""
    name = port.name
    filler = "{" * 2 + "$random(seed)" + "}" * 2
    if port.width > 32:
        filler = "{" + ", ".join(["$random(seed)"] * -(-port.width // 32)) + "}"
    return [
        "    always @(posedge clk) begin",
        f"        if ({name}__valid && {name}__ready) {name}_done <= {name}_done + 1;",
        f"        if (rst) {name}__valid <= 0;",
        f"        else if (!{name}__valid || {name}__ready) begin",
        f"            if ({name}_offered < {count} && {{$random(seed)}} % 100 >= stall) begin",
        f"                {name}__valid <= 1;",
        f"                {name}__payload <= {name}_words[{name}_offered];",
        f"                {name}_offered <= {name}_offered + 1;",
        "            end else begin",
        f"                {name}__valid <= 0;",
        f"                {name}__payload <= {filler};",
        "            end",
        "        end",
        "    end",
        "",
    ]


def _sink(port: StreamPort, count: int) -> list[str]:
    """Take words and compare them."""
    name = port.name
    return [
        "    always @(posedge clk) begin",
        f"        {name}__ready <= !rst && {{$random(seed)}} % 100 >= stall;",
        f"        if (!rst && {name}__valid !== 0 && {name}__ready) begin",
        f"            {name}_done <= {name}_done + 1;",
        f"            if ({name}__valid !== 1 || {name}_done >= {count}) begin",
        f'                $display("FAIL: {name}[%0d]: nothing expected, got %h (valid %b)", {name}_done, {name}__payload, {name}__valid);',
        "                $finish;",
        f"            end else if ({name}__payload !== {name}_words[{name}_done]) begin",
        f'                $display("FAIL: {name}[%0d]: expected %h, got %h", {name}_done, {name}_words[{name}_done], {name}__payload);',
        "                $finish;",
        "            end",
        "        end",
        "    end",
        "",
    ]


def memory_text(words: Sequence[int], width: int) -> str:
    """Return words as a file for `$readmemh`, one a line."""
    digits = -(-width // 4)
    return "".join(f"{word:0{digits}x}\n" for word in words)


def interface_text(module: str, component: wiring.Component, ports: Sequence[VerilogPort]) -> str:
    """Return the description of a module's interface, as Markdown: ports, packing of payloads,
    formats, timing, reset.
    """
    lines = [f"# {module}", "", inspect.getdoc(type(component)) or "", "", "## Ports", ""]
    lines += ["| port | direction | bits | meaning |", "|---|---|---|---|"]
    streams = {port.name: port for port in stream_ports(component)}
    for port in ports:
        lines.append(
            f"| `{port.name}` | {'in' if port.is_input else 'out'} | {port.width} | {_meaning(port.name, streams)} |"
        )
    lines += [
        "",
        "A word is transferred on a stream at every rising edge of `clk` at which `valid` and `ready` are both 1. Whoever offers a word holds `valid` and "
        "the payload until then, and does not wait for `ready` first.",
        "",
        "`rst` is synchronous and high-active; one cycle of it starts the core afresh. Registers also have their initial values after "
        "configuration, so a reset at power-up is needed only where the family's memories are late: hold `rst` for some 40 cycles on iCE40.",
        "",
        "## Payloads",
        "",
    ]
    for word in streams.values():
        lines += [f"`{word.name}__payload`, {word.width} bits:", "", "| field | bits | number |", "|---|---|---|"]
        lines += [
            f"| {name} | {_bits(offset, shape)} | {_number(shape)} |" for name, offset, shape in _fields(word.shape)
        ]
        lines.append("")
    formats = list(_formats(getattr(component, "parameters", None)))
    if formats:
        lines += ["## Formats", "", "| quantity | format |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in formats]
        lines += ["", "Qm.n: signed, m integer bits counting the sign, n fraction bits; UQm.n: unsigned.", ""]
    lines += [
        "## Test bench",
        "",
        "```sh",
        f"iverilog -g2005 -o bench {module}.v {module}_testbench.v && vvp -n bench",
        "```",
        "",
        "prints a line that begins with PASS or FAIL; `vvp -n bench +stall=0` runs it at full speed. With Verilator:",
        "",
        "```sh",
        _verilator_command(module),
        "```",
        "",
    ]
    return "\n".join(lines)


def _meaning(name: str, streams: Mapping[str, StreamPort]) -> str:
    base, _, part = name.rpartition("__")
    if base in streams:
        way = "input" if streams[base].is_input else "output"
        return {
            "payload": f"word of {way} stream `{base}`",
            "valid": "a word is offered",
            "ready": "it would be taken",
        }[part]
    return {"clk": "clock, rising edge", "rst": "reset, synchronous, high-active"}.get(name, "see above")


def _fields(shape: ShapeLike, name: str = "", offset: int = 0) -> Iterator[tuple[str, int, ShapeLike]]:
    """Yield the leaves of a payload's layout: (name, offset, shape)."""
    if isinstance(shape, data.Layout):
        for key, field in shape:
            inner = f"{name}[{key}]" if isinstance(key, int) else f"{name}.{key}".lstrip(".")
            yield from _fields(field.shape, inner, offset + field.offset)
    else:
        yield name or "(whole)", offset, shape


def _bits(offset: int, shape: ShapeLike) -> str:
    width = Shape.cast(shape).width
    return f"{offset + width - 1}:{offset}" if width > 1 else str(offset)


def _number(shape: ShapeLike) -> str:
    if isinstance(shape, FixedPointShape):
        return f"{shape.number_format}, {_number(shape.as_shape())}"
    plain = Shape.cast(shape)
    return (
        "flag"
        if plain.width == 1 and not plain.signed
        else f"{'signed' if plain.signed else 'unsigned'}, {plain.width} bits"
    )


def _formats(parameters: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the Q-formats of a core's parameters, and of the layers that these hold."""
    if not dataclasses.is_dataclass(parameters):
        return
    for field in dataclasses.fields(parameters):
        value = getattr(parameters, field.name)
        if isinstance(value, QFormat):
            yield f"{prefix}{field.name}", str(value)
        elif dataclasses.is_dataclass(value):
            yield from _formats(value, f"{prefix}{field.name}.")
