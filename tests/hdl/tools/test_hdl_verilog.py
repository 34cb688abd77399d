# amaranth: UnusedElaboratable=no
import re
import shutil
from pathlib import Path

import pytest
from verilog_benches import EVERY_VERILOG_SIMULATOR

from hdl import CircuitError, ToolError
from hdl.catalog.registry import CORES
from hdl.tools import toolchain
from hdl.tools.verilog import OPERAND_WIDTHS, ports_of, stream_ports, to_plain_verilog
from sim.simulators import tools
from sim.simulators.verilog_bench import choose_simulator
from sim.verilog_export import export_core, module_name, run_testbench

COUNT = 12


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Cores exported when first asked for: name → directory."""
    base, directories = tmp_path_factory.mktemp("verilog"), {}

    def export(name):
        if name not in directories:
            directories[name] = base / name
            export_core(CORES[name], CORES[name].example(), base / name, COUNT, seed=1)
        return directories[name]

    return export


OPTIONS = {"verilator": (), "icarus": ("-g2001",)}


@pytest.mark.parametrize("simulator", EVERY_VERILOG_SIMULATOR)
@pytest.mark.parametrize("name", CORES)
def test_an_exported_core_gives_golden_results(exported, name, simulator):
    """As a stranger would use it: plain Verilog, at full speed and with pauses on both sides."""
    module, directory = module_name(CORES[name]), exported(name)
    words = {path.stem: len(path.read_text().splitlines()) for path in directory.glob("*.mem")}
    cycles = []
    for verdict in run_testbench(
        directory, module, [f"{module}.v"], simulator, stalls=(0, 25), options=OPTIONS[simulator]
    ):
        assert verdict.startswith("PASS: ")
        assert dict(re.findall(r"(\w+) (\d+) of \2", verdict)) == {port: str(count) for port, count in words.items()}
        cycles.append(int(verdict.split()[-2]))
    assert max(words.values()) <= cycles[0] < cycles[1]


def with_one_change(directory, tmp_path, file, old, new):
    (tmp_path / "changed").mkdir()
    for source in directory.iterdir():
        text = source.read_text()
        if source.name == file:
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / "changed" / source.name).write_text(text)
    return tmp_path / "changed"


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("softmax-numerators", "softmax_numerators.v", " + ", " - ", r"FAIL: o.*expected"),
        ("matrix-vector", "matrix_vector.v", " + ", " - ", r"FAIL: "),
        ("uart", "i.mem", "\nff\n", "\n55\n", r"FAIL: o\[1\]: expected ff, got 55"),
        ("uart", "uart_testbench.v", "assign rx = tx", "assign rx = 1", r"FAIL: no transfer: i 12 of 12, o 0 of 12"),
    ],
)
@pytest.mark.parametrize("simulator", EVERY_VERILOG_SIMULATOR)
def test_the_exported_bench_can_fail(exported, tmp_path, name, file, old, new, message, simulator):
    directory = with_one_change(exported(name), tmp_path, file, old, new)
    module = module_name(CORES[name])
    with pytest.raises(ToolError, match=f"the test bench of {module} says: {message}"):
        run_testbench(directory, module, [f"{module}.v"], simulator)


@pytest.mark.parametrize(
    ("simulator", "message"),
    [("verilator", "FAIL: no transfer"), pytest.param("icarus", r"FAIL: .*\(valid z\)", marks=pytest.mark.icarus)],
)
def test_a_flag_that_is_not_connected_fails(exported, tmp_path, simulator, message):
    directory = with_one_change(exported("uart"), tmp_path, "uart_testbench.v", "(o__valid)", "()")
    with pytest.raises(ToolError, match=message):
        run_testbench(directory, "uart", ["uart.v"], simulator)


@pytest.mark.parametrize("simulator", EVERY_VERILOG_SIMULATOR)
@pytest.mark.parametrize("unknown", ["2'bx", "never_set"])
def test_a_result_that_depends_on_what_is_unknown_fails(exported, tmp_path, unknown, simulator):
    """What no reset and no initial value sets must not reach a result, whatever a simulator takes
    it for.
    """
    old, new = "module uart_testbench;", "module uart_testbench; reg [1:0] never_set;"
    directory = with_one_change(exported("uart"), tmp_path, "uart_testbench.v", old, new)
    bench = directory / "uart_testbench.v"
    text = bench.read_text()
    assert ".o__payload(o__payload)" in text
    text = text.replace(".o__payload(o__payload)", ".o__payload(given)").replace(
        "    uart core", f"    wire [7:0] given;\n    assign o__payload = {{{unknown}, given[5:0]}};\n    uart core"
    )
    bench.write_text(text)
    with pytest.raises(ToolError, match=r"FAIL: o\[\d\]: expected"):
        run_testbench(directory, "uart", ["uart.v"], simulator)


def test_a_surplus_result_fails(exported, tmp_path):
    """One more byte goes in than the bench expects to come out."""
    directory = with_one_change(exported("uart"), tmp_path, "uart_testbench.v", "i_offered < 12", "i_offered < 13")
    text = (directory / "uart_testbench.v").read_text().replace("i_done == 12", "i_done >= 12")
    (directory / "uart_testbench.v").write_text(text)
    with pytest.raises(ToolError, match=r"FAIL: o\[12\]: nothing expected|FAIL: o"):
        run_testbench(directory, "uart", ["uart.v"])


def test_the_export_is_plain_verilog_with_its_interface(exported):
    text = (exported("matrix-vector") / "matrix_vector.v").read_text()
    assert text.startswith("// Made from Amaranth by Positron.\n")
    assert "assert" not in text
    assert "always @*" not in text
    assert "module matrix_vector(" in text
    interface = (exported("matrix-vector") / "matrix_vector.md").read_text()
    assert "| data | 7:0 | Q3.5, signed, 8 bits |" in interface
    assert "| last | 8 | flag |" in interface
    assert "| input | Q3.5 |" in interface
    words = " ".join(interface.split())
    assert "clock edges from the first element of V vectors taken to the last result given" in words
    assert "| `rst` | in | 1 | reset, synchronous, high-active |" in interface
    assert "| `rx` | in | 1 |" in (exported("uart") / "uart.md").read_text()


# What -Wall may say is explained, kind by kind.
VERILOG_PAGE = Path("docs/hardware/verilog.md").read_text(encoding="utf-8")
EXPLAINED = re.findall(r"^\| `([A-Z]+)` \|", VERILOG_PAGE, re.MULTILINE)


def lint(directory, sources, *options):
    """Return Verilator's warnings about Verilog."""
    try:
        # UNOPTFLAT, a vector whose parts depend on one another, is about Verilator's speed.
        output = toolchain.run_tool(
            "verilator", ("--lint-only", "-Wno-UNOPTFLAT", *options, *map(str, sources)), directory
        )
    except toolchain.ToolFailure as failure:
        output = failure.output
    return [line for line in output.splitlines() if line.startswith("%")]


@pytest.mark.parametrize("name", CORES)
def test_a_linter_has_nothing_to_say(exported, tmp_path, name):
    source = exported(name) / f"{module_name(CORES[name])}.v"
    assert lint(tmp_path, [source]) == []
    assert lint(tmp_path, [source], "-Wall", *(f"-Wno-{kind}" for kind in EXPLAINED)) == []


def test_a_linter_sees_a_width_that_is_not_explicit(exported, tmp_path):
    source = exported("uart") / "uart.v"
    text = source.read_text()
    assert "{ 1'h0, count } + 4'h1" in text
    (tmp_path / "uart.v").write_text(text.replace("{ 1'h0, count }", "{ 3'h0, count }"))
    assert "WIDTHEXPAND" in lint(tmp_path, ["uart.v"])[0]


def test_explicit_widths_change_no_operator(tmp_path):
    """Yosys proves it for random widths and signs of every kind of cell that the map replaces."""
    shutil.copy(OPERAND_WIDTHS, tmp_path)
    (tmp_path / "map.ys").write_text(f"techmap -map {OPERAND_WIDTHS.name}\n")
    kinds = re.findall(r'"(\$\w+)"', OPERAND_WIDTHS.read_text())
    assert len(kinds) == 15
    toolchain.run_tool("yosys", ("-q", "-p", f"test_cell -n 2 -s 1 -script map.ys {' '.join(kinds)}"), tmp_path)


def test_two_cores_of_one_kind_stand_in_one_design(tmp_path):
    """No module of one has the name of a module of the other, and both are whole."""
    entry, names = CORES["matrix-vector"], ("query", "key")
    for name in names:
        export_core(entry, entry.example(part=f"attention.{name}"), tmp_path / name, COUNT, seed=1, module=name)
    sources = [f"{name}/{name}.v" for name in names]
    texts = [(tmp_path / source).read_text() for source in sources]
    modules = [module for text in texts for module in re.findall(r"^module (\S+?)\(", text, re.MULTILINE)]
    assert len(set(modules)) == len(modules) >= 4
    assert all(re.fullmatch(r"(query|key)(__\w+)?", module) for module in modules)
    parts = "".join(f"{name} its_{name}(.clk(clk), .rst(rst)); " for name in names)
    (tmp_path / "top.v").write_text(f"module top(input clk, input rst); {parts}endmodule\n")
    assert lint(tmp_path, ["top.v", *sources], "-Wno-PINMISSING") == []


@pytest.mark.parametrize("name", ["1st", "a-b", "a.b", "", "ä", "begin"])
def test_a_name_that_is_none_in_verilog_is_refused(name):
    with pytest.raises(CircuitError, match=r"^a module('s name has letters, .* got '| cannot be called begin)"):
        to_plain_verilog(CORES["stream-register"].example(), name)


def test_ports_are_read_with_their_widths():
    text = (
        "module \\top\n  wire width 3 signed input 0 \\a\n  wire input 1 \\clk\n  wire width 9 output 2  \\o__b\nend\n"
    )
    ports = ports_of(text, "top")
    assert [(port.name, port.width, port.is_input) for port in ports] == [
        ("a", 3, True),
        ("clk", 1, True),
        ("o__b", 9, False),
    ]


def test_streams_are_found_in_order():
    assert [(port.name, port.is_input, port.width) for port in stream_ports(CORES["uart"].example())] == [
        ("i", True, 8),
        ("o", False, 8),
    ]


@pytest.mark.parametrize(
    ("missing", "taken"), [((), "verilator"), (("iverilog", "vvp"), "verilator"), (("c++",), "icarus")]
)
def test_the_first_simulator_that_can_run_is_taken(missing, taken, monkeypatch):
    monkeypatch.setattr(tools, "find_tool", lambda name: None if name in missing else Path("/bin") / name)
    assert choose_simulator() == taken


def test_without_a_simulator_a_line_says_what_to_install(exported, monkeypatch):
    present = ("verilator", "perl", "make", "vvp")
    monkeypatch.setattr(tools, "find_tool", lambda name: Path("/bin") / name if name in present else None)
    with pytest.raises(ToolError) as error:
        run_testbench(exported("uart"), "uart", ["uart.v"])
    assert str(error.value) == (
        "no Verilog simulator can run here: verilator lacks c++ (install it: apt-get install g++); "
        "icarus lacks iverilog (install it: apt-get install iverilog)"
    )
