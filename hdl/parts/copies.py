"""Register duplication: one register several times, for what very many others wait for."""

from amaranth.hdl import ClockSignal, Const, Instance, Module
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .parameter_checks import check_whole
from .registers import data_register


class Copies(wiring.Component):
    """The same registers `count` times, so that each reader has a copy near it.

    A flip-flop with a thousand readers all over an ECP5-85F needs 11 ns to reach the last one.
    Copies written down as registers would be one register again after synthesis, which merges what
    is equal; so on ECP5 the cells are instantiated by hand, and everywhere else a behavioural model
    of the same latency takes their place.

    Equation: `o[k] = i`, a cycle later. Latency: 1 cycle. Throughput: one a cycle. Resources:
    `count` times `bits` flip-flops, without reset; they start at zero. Source: Lattice
    FPGA-DS-02012, "ECP5 and ECP5-5G Family Data Sheet", the register of a slice; cell and ports as
    in Yosys's ecp5/cells_sim.v.

    Attributes:
        bits: Of the input, and of each copy.
        count: Copies.
        i: In, `bits` bits.
        o: Out, array of `count` times `bits` bits.
    """

    def __init__(self, bits: int, count: int):
        check_whole("bits of copied registers", bits)
        check_whole("count of copies", count)
        self.bits, self.count = bits, count
        super().__init__({"i": In(bits), "o": Out(data.ArrayLayout(bits, count))})

    def elaborate(self, platform: object) -> Module:
        """Build the cells where they exist, else a behavioural model."""
        m = Module()
        if getattr(platform, "family", None) != "ecp5":
            copies = data_register(self.o.shape(), name="copied")  # no instance is named so
            m.d.sync += [copy.eq(self.i) for copy in copies]
            m.d.comb += self.o.eq(copies)
            return m
        for number in range(self.count):
            for bit in range(self.bits):
                m.submodules[f"copy_{number}_{bit}"] = Instance(
                    "TRELLIS_FF",
                    p_GSR="DISABLED",  # the global set/reset net belongs to the board
                    p_CEMUX="1",
                    p_CLKMUX="CLK",
                    p_LSRMUX="LSR",
                    p_REGSET="RESET",
                    i_CLK=ClockSignal(),
                    i_LSR=Const(0, 1),
                    i_DI=self.i[bit],
                    o_Q=self.o[number][bit],
                )
        return m
