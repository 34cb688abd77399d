"""What the tests of the stream cores share: rows, runs with and without stalls, and a reset in the
middle.
"""

import numpy as np
import pytest
from amaranth.hdl import Module, ResetInserter, Signal
from amaranth.lib import wiring

from hdl.catalog.vectors import row_columns
from hdl.tools.toolchain import find_tool
from sim.bench.bench import StreamBench
from sim.bench.payload import WORD_BITS, pack_all
from sim.bench.stalls import Stalls
from sim.simulators.native_bench import NEEDED_TOOLS, NativeBench
from sim.simulators.runner import simulate, simulate_each

# Source and sink stall independently; full speed comes first because it also checks the cycle
# count.
STALLS = ((0.0, 0.0), (0.4, 0.0), (0.0, 0.4), (0.3, 0.3))

needs_compiler = pytest.mark.skipif(
    any(find_tool(tool) is None for tool in NEEDED_TOOLS), reason="Verilator or a compiler is missing"
)


def run(bench, build_directory, source_stall=0.0, sink_stall=0.0, seed=0):
    return simulate(
        bench,
        "amaranth",
        build_directory=build_directory,
        seed=seed,
        source_stall=source_stall,
        sink_stall=sink_stall,
    )


def run_with_stalls(bench, build_directory):
    """Run a bench with each of `STALLS`, then with sinks that are silent until all that can wait in
    the circuit does.
    """
    full_speed = run(bench, build_directory)
    stalls = [Stalls(seed, *levels) for seed, levels in enumerate(STALLS)]
    silent = Stalls(len(STALLS), sink_delay=full_speed.total_cycles)
    simulate_each(bench, [*stalls[1:], silent], "amaranth", build_directory=build_directory)


def pack_rows(port, field, rows):
    """Raw words of rows for a stream of {field, last}."""
    last = np.concatenate([np.arange(len(row)) == len(row) - 1 for row in rows])
    return pack_all(port.payload.shape(), {field: np.concatenate(rows), "last": last.astype(int)})


def bench(name, core, inputs, outputs, **settings):
    return StreamBench(name, core, {"i": inputs}, outputs, watchdog_cycles=2000, **settings)


def compiled(bench, build_directory):
    """Compile a bench. Return a function that runs it with given stalls and returns the result."""
    harness = bench.harness()
    native = NativeBench.build(bench.name, harness, build_directory)
    columns = {}
    for port in (*harness.sources, *harness.sinks):
        size = -(-port.width // WORD_BITS) * WORD_BITS // 8
        words = {**bench.inputs, **bench.outputs}[port.name]
        memory = b"".join(int(word).to_bytes(size, "little") for word in words)
        columns[port.name] = np.frombuffer(memory, dtype="<u4").reshape(len(words), -1)
    inputs, outputs = ({name: columns[name] for name in words} for words in (bench.inputs, bench.outputs))

    def run_once(stalls):
        result = native.run(inputs, outputs, stalls, expected_cycles=bench.expected_cycles)
        assert result.results == sum(map(len, bench.outputs.values()))
        return result

    return run_once


def run_compiled(bench, build_directory):
    """Run a bench that is too long for Python at every clock edge: at full speed, with stalls and a
    reset in the middle, with silent sinks.
    """
    run_once = compiled(bench, build_directory)
    for stalls in (Stalls(), Stalls(1, 0.2, 0.2, reset_after=5000), Stalls(2, sink_delay=5000)):
        run_once(stalls)


def run_compiled_with_stalls(bench, build_directory):
    """Do as `run_with_stalls`, compiled, and reset the circuit in the middle of each run again."""
    run_once = compiled(bench, build_directory)
    cycles = run_once(Stalls()).total_cycles
    for seed, levels in enumerate(STALLS):
        for reset_after in (0, cycles // 2):
            run_once(Stalls(seed, *levels, reset_after))
    run_once(Stalls(len(STALLS), sink_delay=cycles))


def every_row(number_format, length):
    """All rows (n, length) of a format's numbers."""
    values = np.arange(number_format.minimum_integer, number_format.maximum_integer + 1)
    return values[np.indices((len(values),) * length).reshape(length, -1).T]


def rows_bench(name, core, field_in, rows, field_out, **settings):
    """A core that turns rows (n, N) into rows by its parameters' `compute`, all of them at once."""
    inputs = pack_all(core.i.payload.shape(), row_columns(field_in, rows))
    outputs = pack_all(core.o.payload.shape(), row_columns(field_out, core.parameters.compute(rows)))
    return bench(name, core, inputs, {"o": outputs}, **settings)


class ResetOnce(wiring.Component):
    """A core that is reset for one cycle, once it has taken `taken` words on `i` and given `given`
    on `o`.

    It takes no further word before that, and gives none during the reset.
    """

    def __init__(self, core, taken, given=0):
        self.core, self.taken, self.given = core, taken, given
        super().__init__(dict(core.signature.members))

    def elaborate(self, platform):
        m = Module()
        reset, done, full = Signal(), Signal(), Signal()
        taken, given = Signal(range(self.taken + 1)), Signal(range(self.given + 1))
        m.submodules.core = ResetInserter({"sync": reset})(self.core)
        for name in self.signature.members:
            wiring.connect(m, wiring.flipped(getattr(self, name)), getattr(self.core, name))
        m.d.comb += [full.eq(~done & (taken == self.taken)), reset.eq(full & (given == self.given))]
        with m.If(reset):
            m.d.comb += [self.o.valid.eq(0), self.core.o.ready.eq(0)]
            m.d.sync += done.eq(1)
        with m.If(full):
            m.d.comb += [self.i.ready.eq(0), self.core.i.valid.eq(0)]
        with m.Elif(self.i.valid & self.i.ready):
            m.d.sync += taken.eq(taken + 1)
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += given.eq(given + 1)
        return m
