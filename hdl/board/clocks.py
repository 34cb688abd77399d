"""A board's clock: the dividers of an ECP5 PLL, and a clock domain whose reset waits for it."""

from dataclasses import dataclass
from fractions import Fraction

from amaranth.build import Platform
from amaranth.hdl import C, ClockDomain, ClockSignal, Elaboratable, Instance, Module, Signal
from amaranth.lib.cdc import FFSynchronizer

from ..errors import CircuitError

# Cycles that reset lasts after the clock is stable. iCE40 block RAM reads 0 for some 36 cycles
# after power-up, and no family promises more than ECP5 does.
RESET_CYCLES = 1024


@dataclass(frozen=True)
class PLLSetting:
    """Dividers of an ECP5 PLL with feedback from its primary output: output = input / input_divider
    · feedback_divider.

    Attributes:
        input_divider: CLKI_DIV.
        feedback_divider: CLKFB_DIV.
        output_divider: CLKOP_DIV; the oscillator runs at output · output_divider.
        frequency: Hz of the output.
    """

    input_divider: int
    feedback_divider: int
    output_divider: int
    frequency: float

    @property
    def oscillator_frequency(self) -> float:
        """Hz of the voltage-controlled oscillator."""
        return self.frequency * self.output_divider


def pll_setting(input_frequency: float, output_frequency: float) -> PLLSetting:
    """Return the PLL dividers that come closest to a frequency, with the oscillator as near to 600
    MHz as possible.

    Limits from Lattice's ECP5 family data sheet (FPGA-DS-02012), "sysCLOCK PLL Timing": input 8 to
    400 MHz, phase detector 3.125 to 400 MHz, oscillator 400 to 800 MHz, output 3.125 to 400 MHz,
    dividers 1 to 128 (feedback 1 to 80).

    Args:
        input_frequency: Hz.
        output_frequency: Hz wanted.

    Raises:
        CircuitError: Nothing comes within 1 %.
    """
    if not 8e6 <= input_frequency <= 400e6:
        raise CircuitError(f"an ECP5 PLL takes 8 to 400 MHz, not {input_frequency / 1e6:g} MHz")
    source, target = Fraction(input_frequency), Fraction(output_frequency)
    best: tuple[tuple[Fraction, Fraction], PLLSetting] | None = None
    reachable: set[Fraction] = set()
    for input_divider in range(1, 129):
        detector = source / input_divider
        if not 3_125_000 <= detector <= 400_000_000:
            continue
        for feedback_divider in range(1, 81):
            output = detector * feedback_divider
            if not 3_125_000 <= output <= 400_000_000:
                continue
            reachable.add(output)
            if abs(output - target) * 100 > target:
                continue
            for output_divider in range(1, 129):
                oscillator = output * output_divider
                if not 400_000_000 <= oscillator <= 800_000_000:
                    continue
                distance = abs(output - target), abs(oscillator - 600_000_000)
                if best is None or distance < best[0]:
                    best = distance, PLLSetting(input_divider, feedback_divider, output_divider, float(output))
    if best is None:
        near = sorted(reachable, key=lambda output: abs(output - target))[:2]
        raise CircuitError(
            f"an ECP5 PLL cannot make {output_frequency / 1e6:g} MHz from {input_frequency / 1e6:g} MHz; "
            f"the nearest are {' and '.join(f'{float(output) / 1e6:.5g}' for output in sorted(near))} MHz"
        )
    return best[1]


def clock_frequency(input_frequency: float, frequency: float) -> float:
    """Return the clock that a board gets when it asks for `frequency`, Hz: its own, or the nearest
    that a PLL makes.

    Raises:
        CircuitError: No PLL setting comes within 1 %.
    """
    return frequency if frequency == input_frequency else pll_setting(input_frequency, frequency).frequency


class ClockGenerator(Elaboratable):
    """A clock domain from a board's clock: a PLL, and a reset that waits for it. The module above
    adds `domain` to its own domains.

    It is held in reset until the PLL has been locked for `RESET_CYCLES` cycles, so that no memory
    is read before it can be, and again whenever `reset` is high or the lock is lost. Without a PLL
    (same frequency) the count alone does it.

    Attributes:
        domain: The clock domain `sync`.
        frequency: Its Hz, as near to what was asked as the PLL comes.
        clock_in: The board's clock.
        reset: Asynchronous request to start over, active high.
    """

    def __init__(self, input_frequency: float, frequency: float):
        self.setting = None if frequency == input_frequency else pll_setting(input_frequency, frequency)
        self.input_frequency = input_frequency
        self.frequency = clock_frequency(input_frequency, frequency)
        self.domain = ClockDomain("sync")
        self.clock_in = Signal()
        self.reset = Signal()

    def elaborate(self, platform: Platform | None) -> Module:
        """Build the circuit."""
        m = Module()
        clock, locked, stable, again = Signal(name="system_clock"), Signal(), Signal(), Signal()
        m.domains.power_up = ClockDomain(reset_less=True, local=True)
        m.d.comb += [self.domain.clk.eq(clock), ClockSignal("power_up").eq(clock)]
        if self.setting is None:
            m.d.comb += [clock.eq(self.clock_in), locked.eq(1)]
        else:
            m.submodules.pll = self._pll(self.setting, clock, locked)
        if platform is not None:
            platform.add_clock_constraint(clock, self.frequency)
        m.submodules.stable = FFSynchronizer(locked, stable, o_domain="power_up")
        m.submodules.again = FFSynchronizer(self.reset, again, o_domain="power_up")
        count = Signal(range(RESET_CYCLES))
        in_reset = Signal(init=1)
        m.d.comb += self.domain.rst.eq(in_reset)
        with m.If(~stable | again):
            m.d.power_up += [count.eq(0), in_reset.eq(1)]
        with m.Elif(count == RESET_CYCLES - 1):
            m.d.power_up += in_reset.eq(0)
        with m.Else():
            m.d.power_up += count.eq(count + 1)
        return m

    def _pll(self, setting: PLLSetting, clock: Signal, locked: Signal) -> Instance:
        return Instance(
            "EHXPLLL",
            # Charge pump and loop filter as Lattice's tools and Project Trellis set them for every
            # frequency.
            a_ICP_CURRENT="12",
            a_LPF_RESISTOR="8",
            a_MFG_ENABLE_FILTEROPAMP="1",
            a_MFG_GMCREF_SEL="2",
            a_FREQUENCY_PIN_CLKI=f"{self.input_frequency / 1e6:g}",
            a_FREQUENCY_PIN_CLKOP=f"{setting.frequency / 1e6:g}",
            p_CLKI_DIV=setting.input_divider,
            p_CLKFB_DIV=setting.feedback_divider,
            p_CLKOP_DIV=setting.output_divider,
            p_CLKOP_CPHASE=setting.output_divider // 2,
            p_CLKOP_FPHASE=0,
            p_CLKOP_ENABLE="ENABLED",
            p_FEEDBK_PATH="CLKOP",
            **{f"p_OUTDIVIDER_MUX{output}": f"DIV{output}" for output in "ABCD"},
            **{f"p_{unused}": "DISABLED" for unused in ("PLLRST_ENA", "INTFB_WAKE", "STDBY_ENABLE", "DPHASE_SOURCE")},
            i_CLKI=self.clock_in,
            i_CLKFB=clock,
            **{f"i_{pin}": C(0) for pin in ("RST", "STDBY", "PHASESEL0", "PHASESEL1")},
            **{f"i_{pin}": C(1) for pin in ("PHASEDIR", "PHASESTEP", "PHASELOADREG")},
            **{f"i_{pin}": C(0) for pin in ("PLLWAKESYNC", "ENCLKOP")},
            o_CLKOP=clock,
            o_LOCK=locked,
        )
