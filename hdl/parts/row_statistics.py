# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
"""The sums that LayerNorm and RMSNorm divide a row by, gathered while rows pass without a gap."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

import fixedpoint

from .arithmetic import multiply, shape_of
from .dot_product import AdderTree, Delay
from .internals import Internals
from .multiplier import Multiplier
from .registers import data_register


def later(m: Module, value: Signal, cycles: int) -> Signal:
    """Return a value as it was some clock cycles ago, by registers without a reset."""
    for _ in range(cycles):
        register = data_register(value, name=f"{value.name}_later")
        m.d.sync += register.eq(value)
        value = register
    return value


class RowStatistics(wiring.Component):
    """The sum S of a row of C elements, and `v = C·Q − S² + epsilon` with Q its sum of squares; for
    RMSNorm, which has no S, `v = C·Q + epsilon`.

    Elements arrive `lanes` a cycle. Everything is a pipeline without a handshake that never stops;
    it may give results every C / lanes cycles. S² is made of three products of half its width. C·Q
    costs an addition for each bit of C's odd factor below the leading one: nothing for a power of
    two, one addition for 192 or 384.

    Latency: `settle` = T + max(7, 5 + B) cycles from a row's last word to `variance`, T + 4 + B for
    RMSNorm, with T = ceil(log2 lanes) and B the bits of C's odd factor.
    Resources: hard multipliers: one a lane, and 3 for S².

    Attributes:
        parameters: A `fixedpoint.LayerNorm` or `fixedpoint.RMSNorm`.
        lanes: Elements a cycle.
        settle: The formula above.
        valid: In, 1 bit. A word arrives.
        first, last: In, 1 bit. It is a row's first, its last.
        elements: In, array of `lanes` elements.
        total_valid: Out, 1 bit, LayerNorm only. A row's S is there, for this cycle.
        total: Out, signed S, LayerNorm only.
        variance_valid: Out, 1 bit. A row's v is there, for this cycle.
        variance: Out, unsigned v.
    """

    def __init__(self, parameters: "fixedpoint.LayerNorm | fixedpoint.RMSNorm", lanes: int):
        self.parameters = parameters
        self.lanes = lanes
        self._trailing_zeros = (parameters.channels & -parameters.channels).bit_length() - 1
        self._odd_factor = parameters.channels >> self._trailing_zeros
        bits = parameters.input.bits
        # (-2**(bits-1))² fits a signed number of twice the bits
        self._square_tree = AdderTree(lanes, 2 * bits)
        odd_bits = self._odd_factor.bit_length()
        self._variance_stages = max(7, 5 + odd_bits) if isinstance(parameters, fixedpoint.LayerNorm) else 4 + odd_bits
        self.settle = self._square_tree.latency + self._variance_stages
        ports = {
            "valid": In(1),
            "first": In(1),
            "last": In(1),
            "elements": In(data.ArrayLayout(shape_of(parameters.input), lanes)),
            "variance_valid": Out(1),
            "variance": Out(unsigned(parameters.variance_bits)),
        }
        if isinstance(parameters, fixedpoint.LayerNorm):
            ports |= {"total_valid": Out(1), "total": Out(signed(parameters.sum_bits))}
        super().__init__(ports)

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        parameters = self.parameters
        odd_bits = self._odd_factor.bit_length()
        m.submodules.square_tree = square_tree = self._square_tree

        # An element: the multiplier's three registers, the tree, the sum.
        summed = self._square_tree.latency + Multiplier.latency + 1
        tag = data.StructLayout({"valid": 1, "first": 1, "last": 1})
        m.submodules.tags = tags = Delay(tag, self.settle)
        m.d.comb += [
            tags.en.eq(1),
            tags.i.valid.eq(self.valid),
            tags.i.first.eq(self.first),
            tags.i.last.eq(self.last),
            self.variance_valid.eq(tags.o.valid & tags.o.last),
            square_tree.en.eq(1),
        ]
        for lane in range(self.lanes):
            element = self.elements[lane]
            m.d.comb += square_tree.i[lane].eq(multiply(m, f"square_{lane}", element, element))
        self.internals = Internals(tags=tags, square_tree=square_tree)
        squares = data_register(unsigned(parameters.square_sum_bits))
        with m.If(tags.taps[summed - 1].valid):
            m.d.sync += squares.eq(square_tree.o + Mux(tags.taps[summed - 1].first, 0, squares))

        # C·Q + epsilon, by Horner's scheme: each bit of the odd factor below the leading one
        # doubles, and adds Q if it is set.
        multiple = squares
        for position in reversed(range(odd_bits - 1)):
            further = data_register(unsigned(parameters.variance_bits), name=f"multiple_{position}")
            m.d.sync += further.eq((multiple << 1) + (squares if self._odd_factor >> position & 1 else 0))
            multiple, squares = further, later(m, squares, min(position, 1))
        scaled = data_register(unsigned(parameters.variance_bits))
        m.d.sync += scaled.eq((multiple << self._trailing_zeros) + parameters.epsilon)
        if not isinstance(parameters, fixedpoint.LayerNorm):
            m.d.comb += self.variance.eq(scaled)
            return m

        # S needs no multiplier, so it is there two cycles earlier.
        arrived = data_register(self.elements)
        m.submodules.element_tree = element_tree = AdderTree(self.lanes, parameters.input.bits)
        m.d.comb += element_tree.en.eq(1)
        m.d.comb += [element_tree.i[lane].eq(arrived[lane]) for lane in range(self.lanes)]
        total = data_register(self.total)
        before = tags.taps[summed - 3]
        with m.If(before.valid):
            m.d.sync += total.eq(element_tree.o + Mux(before.first, 0, total))
        m.d.sync += arrived.eq(self.elements)
        m.d.comb += [
            self.total.eq(total),
            self.total_valid.eq(tags.taps[summed - 2].valid & tags.taps[summed - 2].last),
        ]

        # S²: S in two halves, the upper one signed; their squares do not overlap, so one addition
        # joins all three products.
        half = (parameters.sum_bits + 1) // 2
        extended = Signal(signed(2 * half))
        m.d.comb += extended.eq(total)
        low, high = extended[:half], extended[half:].as_signed()
        outer = Cat(*(multiply(m, name, part, part)[: 2 * half] for name, part in (("low", low), ("high", high))))
        cross = multiply(m, "cross", low, high)
        total_squared = data_register(unsigned(4 * half))
        variance = data_register(self.variance)
        m.d.sync += [
            total_squared.eq(outer + (cross << (half + 1))),
            # Whichever is there first waits for the other.
            variance.eq(
                later(m, scaled, self._variance_stages - 5 - odd_bits)
                - later(m, total_squared, self._variance_stages - 7)
            ),
        ]
        m.d.comb += self.variance.eq(variance)
        return m
