"""The models of hard cells against models of another make: plain Python, bit lists instead of
shifted rows, one step at a time.
"""

import random
import re
from pathlib import Path

import pytest
from verilog_benches import EVERY_VERILOG_SIMULATOR, run_bench

from sim.netlist import CELLS_DIRECTORY

STEPS = 400
WIDTHS = (1, 2, 4, 9, 18, 36)
BLOCK_RAM_INPUTS = [
    *(
        f"{name}{side}{bit}"
        for side in "AB"
        for name, bits in (("DI", 18), ("AD", 14), ("CS", 3))
        for bit in range(bits)
    ),
    *(f"{name}{side}" for side in "AB" for name in ("CE", "OCE", "WE", "RST")),
]
BLOCK_RAM_CLOCKS = ["CLKA", "CLKB"]
BLOCK_RAM_OUTPUTS = [f"DO{side}{bit}" for side in "AB" for bit in range(18)]
MULTIPLIER_INPUTS = [
    *(f"{name}{bit}" for name, bits in (("A", 18), ("B", 18), ("CE", 4), ("RST", 4)) for bit in range(bits)),
    *("SIGNEDA", "SIGNEDB", "SOURCEA", "SOURCEB"),
]
MULTIPLIER_CLOCKS = [f"CLK{number}" for number in range(4)]
MULTIPLIER_OUTPUTS = [*(f"P{bit}" for bit in range(36)), "SIGNEDP"]


def instances(cell, parameter_sets, inputs, clocks, outputs, directory, stimuli, simulator):
    """Run several instances of a cell, each with its own stimuli, and return their outputs after
    each step; None is an unknown bit.

    In a step the inputs change first, then clocks rise or fall, all at the same instant; then
    outputs are read.
    """
    lines = ["`timescale 1ns / 1ps", "module bench;", "integer step;"]
    for number, parameters in enumerate(parameter_sets):
        values = ", ".join(f".{name}({value})" for name, value in parameters.items())
        pins = ", ".join(
            [f".{pin}(in{number}[{bit}])" for bit, pin in enumerate(inputs)]
            + [f".{pin}(clock{number}[{bit}])" for bit, pin in enumerate(clocks)]
            + [f".{pin}(out{number}[{bit}])" for bit, pin in enumerate(outputs)]
        )
        total = len(inputs) + len(clocks)
        lines += [
            f"reg [{total - 1}:0] words{number} [0:{STEPS - 1}];",
            f'initial $readmemb("{number}.mem", words{number});',
            f"reg [{len(inputs) - 1}:0] in{number} = 0; reg [{len(clocks) - 1}:0] clock{number} = 0;",
            f"wire [{len(outputs) - 1}:0] out{number};",
            f"{cell} #({values}) cell{number} ({pins});",
        ]
        words = ["".join("01"[bit] for bit in reversed(word)) for word in stimuli[number]]
        (directory / f"{number}.mem").write_text("\n".join(words) + "\n")
    count = len(parameter_sets)
    lines += [f"initial for (step = 0; step < {STEPS}; step = step + 1) begin", "#1;"]
    lines += [f"in{n} = words{n}[step][{len(inputs) - 1}:0];" for n in range(count)]
    lines += ["#1;"]
    lines += [f"clock{n} = words{n}[step][{len(inputs) + len(clocks) - 1}:{len(inputs)}];" for n in range(count)]
    lines += ["#1;", *(f'$display("out {n} %b", out{n});' for n in range(count)), "end", "endmodule"]
    model = CELLS_DIRECTORY / f"{cell.lower()}.v"
    runs = run_bench(directory, {"bench.v": "\n".join(lines), "model.v": model.read_text()}, simulator)
    results = [[] for _ in range(count)]
    for printed in zip(*(re.findall(r"^out (\d+) ([01xz]+)$", output, re.M) for output in runs), strict=True):
        numbers, words = zip(*printed, strict=True)
        assert len(set(numbers)) == 1
        # Known is what every run shows; Verilator has zeros, then ones, in the place of x.
        bits = [set(column) for column in zip(*map(reversed, words), strict=True)]
        results[int(numbers[0])].append([{"0": 0, "1": 1}.get(*seen) if len(seen) == 1 else None for seen in bits])
    assert [len(result) for result in results] == [STEPS] * count, runs[0][-500:]
    return results


class BlockRAM:
    """DP16KD in Python; None is an unknown bit."""

    def __init__(self, parameters):
        self.parameters = parameters
        self.bits = [0] * 18432
        for number in range(64):
            value = int(parameters[f"INITVAL_{number:02X}"].removeprefix("320'h"), 16)
            for place in range(16):
                word = value >> (20 * place)
                start = 18 * (16 * number + place)
                self.bits[start : start + 18] = [word >> bit & 1 for bit in range(18)]
        self.clocks = [0, 0]
        self.latch = [[0] * 36, [0] * 36]
        self.register = [[0] * 36, [0] * 36]

    def setting(self, name, side):
        return self.parameters[f"{name}_{'AB'[side]}"].strip('"')

    def width(self, side):
        return int(self.parameters[f"DATA_WIDTH_{'AB'[side]}"])

    def places(self, side, pins):
        """Return the array's bits that a port's address means."""
        width, letter = self.width(side), "AB"[side]
        address = sum(pins[f"AD{letter}{bit}"] << bit for bit in range(14))
        if width >= 9:
            start = (address >> {9: 3, 18: 4, 36: 5}[width]) * width
        else:
            word = address >> {1: 0, 2: 1, 4: 2}[width]
            start = word // (8 // width) * 9 + word % (8 // width) * width
        return list(range(start, start + width))

    def step(self, pins, clocks):
        synchronous = self.parameters["RESETMODE"] == '"SYNC"'
        inverted = [self.parameters[f"CLK{letter}MUX"] == '"INV"' for letter in "AB"]
        rising = [self.clocks[side] == inverted[side] and clocks[side] != inverted[side] for side in (0, 1)]
        self.clocks = clocks
        resets = [pins["RSTA"], pins["RSTB"]]
        reads, writes = [{}, {}], [{}, {}]
        for side, letter in enumerate("AB"):
            if not synchronous and resets[side]:
                self.latch[side] = self.register[side] = [0] * 36
            chip = "0b" + "".join(str(pins[f"CS{letter}{bit}"]) for bit in (2, 1, 0))
            if not rising[side] or not pins[f"CE{letter}"] or chip != self.setting("CSDECODE", side):
                continue
            places = self.places(side, pins)
            mode = self.setting("WRITEMODE", side)
            if pins[f"WE{letter}"] and not (synchronous and resets[side]):
                data = [pins[f"DI{letter}{bit}"] for bit in range(18)]
                if self.width(side) == 36:
                    data += [pins[f"DIB{bit}"] for bit in range(18)]
                for index, place in enumerate(places):
                    if len(places) < 18 or pins[f"AD{letter}{index // 9}"]:
                        writes[side][place] = data[index]
            elif mode == "NORMAL" or not pins[f"WE{letter}"]:
                mode = "READBEFOREWRITE"
            if mode != "NORMAL" and not (side == 0 and self.width(0) == 36):
                through = writes[side] if mode == "WRITETHROUGH" else {}
                reads[side] = {place: through.get(place, self.bits[place]) for place in places}
        before = [list(latch) for latch in self.latch]
        for side in (0, 1):
            if reads[side]:
                values = [None if place in writes[1 - side] else value for place, value in reads[side].items()]
                self.latch[side] = values + [0] * (36 - len(values))
            if rising[side]:
                if pins[f"OCE{'AB'[side]}"]:
                    self.register[side] = before[side]
                if resets[side]:
                    self.latch[side] = self.register[side] = [0] * 36
        for side in (0, 1):
            for place, value in writes[side].items():
                self.bits[place] = None if place in writes[1 - side] else value
        outputs = []
        for side in (0, 1):
            value = self.register[side] if self.setting("REGMODE", side) == "OUTREG" else self.latch[side]
            outputs.append(value[: self.width(side)] + [None] * (36 - self.width(side)))
        if self.width(1) == 36:
            return outputs[1]
        return ([None] * 18 if self.width(0) == 36 else outputs[0][:18]) + outputs[1][:18]


def random_block_ram(generator, width_a, width_b):
    quoted = lambda *choices: f'"{generator.choice(choices)}"'  # noqa: E731
    modes = ("NORMAL", "WRITETHROUGH", "READBEFOREWRITE")
    return {
        "DATA_WIDTH_A": width_a,
        "DATA_WIDTH_B": width_b,
        "REGMODE_A": quoted("NOREG", "OUTREG"),
        "REGMODE_B": quoted("NOREG", "OUTREG"),
        "RESETMODE": quoted("SYNC", "SYNC", "ASYNC"),
        "CSDECODE_A": quoted("0b000", "0b101"),
        "CSDECODE_B": quoted("0b000", "0b010"),
        "WRITEMODE_A": '"NORMAL"' if width_a == 36 else quoted(*modes),
        "WRITEMODE_B": '"NORMAL"' if width_b == 36 else quoted(*modes),
        "CLKAMUX": quoted("CLKA", "INV"),
        "CLKBMUX": quoted("CLKB", "INV"),
        **{f"INITVAL_{number:02X}": f"320'h{generator.getrandbits(320):x}" for number in range(64)},
    }


def random_pins(generator, parameters):
    """Few addresses, so that ports meet; chip selects that mostly agree; B never writes 36 bits,
    whose pins are A's.
    """
    pins = {pin: generator.getrandbits(1) for pin in BLOCK_RAM_INPUTS}
    for letter in "AB":
        for bit in range(6, 14):
            pins[f"AD{letter}{bit}"] = int(bit == 6)
        for bit in range(3):
            wanted = int(parameters[f"CSDECODE_{letter}"][5 - bit])
            pins[f"CS{letter}{bit}"] = wanted ^ (generator.random() < 0.05)
        pins[f"RST{letter}"] = int(generator.random() < 0.05)
        pins[f"CE{letter}"] = int(generator.random() < 0.9)
    if parameters["DATA_WIDTH_B"] == 36:
        pins["WEB"] = 0
    if parameters["DATA_WIDTH_A"] == 36:
        pins["WEB"] = pins["RSTA"] = 0
    return pins


@pytest.mark.parametrize("simulator", EVERY_VERILOG_SIMULATOR)
def test_the_block_ram_equals_its_reference_in_every_mode(simulator, tmp_path):
    """All pairs of widths; register, reset and write modes, chip selects and clock polarities at
    random; clocks together and apart.
    """
    generator = random.Random(1)
    pairs = [(a, b) for a in WIDTHS for b in WIDTHS]
    configurations = [random_block_ram(generator, *pair) for pair in pairs]
    stimuli, expected = [], []
    for parameters in configurations:
        reference, words, outputs, clocks = BlockRAM(parameters), [], [], [0, 0]
        reference.clocks = [0, 0]
        for _ in range(STEPS):
            pins = random_pins(generator, parameters)
            together = generator.random() < 0.6
            clocks = [1 - clock for clock in clocks] if together else [generator.getrandbits(1) for _ in clocks]
            words.append([pins[pin] for pin in BLOCK_RAM_INPUTS] + clocks)
            outputs.append(reference.step(pins, clocks))
        stimuli.append(words)
        expected.append(outputs)
    results = instances(
        "DP16KD", configurations, BLOCK_RAM_INPUTS, BLOCK_RAM_CLOCKS, BLOCK_RAM_OUTPUTS, tmp_path, stimuli, simulator
    )
    seen = set()
    for parameters, wanted, got in zip(configurations, expected, results, strict=True):
        for step, (one, other) in enumerate(zip(wanted, got, strict=True)):
            assert other == one, (step, {name: parameters[name] for name in parameters if "INITVAL" not in name})
            seen.update(other)
    assert seen == {0, 1, None}


class Register:
    def __init__(self, parameters, stage):
        self.clock, self.enable, self.reset = (
            parameters[f"REG_{stage}_{pin}"].strip('"') for pin in ("CLK", "CE", "RST")
        )
        self.asynchronous = parameters["RESETMODE"] == '"ASYNC"'
        self.value = None

    def see(self, value, pins, rising):
        """Return what stands behind the register, and remember what comes after this step."""
        if self.clock == "NONE":
            return value
        now = self.value or (0, 0)
        following = now
        if rising[self.clock]:
            following = (0, 0) if pins[self.reset] else value if pins[self.enable] else now
        if self.asynchronous and pins[self.reset]:
            following = (0, 0)
        self.value = following
        return now


class HardMultiplier:
    """MULT18X18D in Python: registers move together, then everything behind them settles."""

    def __init__(self, parameters):
        self.parameters = parameters
        self.stages = {stage: Register(parameters, stage) for stage in ("INPUTA", "INPUTB", "PIPELINE", "OUTPUT")}
        self.clocks = [0] * 4

    def settle(self, pins, rising):
        def operand(letter):
            value = sum(pins[f"{letter}{bit}"] << bit for bit in range(18))
            return self.stages[f"INPUT{letter}"].see((value, pins[f"SIGNED{letter}"]), pins, rising)

        operands = operand("A"), operand("B")
        signed = [value - (sign << 18 if value >> 17 else 0) for value, sign in operands]
        product = (signed[0] * signed[1] & ((1 << 36) - 1), operands[0][1] | operands[1][1])
        piped = self.stages["PIPELINE"].see(product, pins, rising)
        return self.stages["OUTPUT"].see(piped, pins, rising)[0] | piped[1] << 36

    def step(self, pins, clocks):
        rising = {f"CLK{number}": clocks[number] > self.clocks[number] for number in range(4)}
        self.clocks = clocks
        self.settle(pins, dict.fromkeys(rising, False))  # asynchronous resets come before the edge
        self.settle(pins, rising)
        result = self.settle(pins, dict.fromkeys(rising, False))
        return [result >> bit & 1 for bit in range(37)]


def random_multiplier(generator, registers):
    parameters = {"RESETMODE": generator.choice(['"SYNC"', '"ASYNC"'])}
    for place, stage in enumerate(("INPUTA", "INPUTB", "PIPELINE", "OUTPUT")):
        used = registers >> place & 1
        parameters[f"REG_{stage}_CLK"] = f'"CLK{generator.randrange(4)}"' if used else '"NONE"'
        parameters[f"REG_{stage}_CE"] = f'"CE{generator.randrange(4)}"'
        parameters[f"REG_{stage}_RST"] = f'"RST{generator.randrange(4)}"'
    return parameters


@pytest.mark.parametrize("simulator", EVERY_VERILOG_SIMULATOR)
def test_the_multiplier_equals_its_reference_in_every_register_mode(simulator, tmp_path):
    """All 16 choices of registers, clocks and enables and resets at random, both signs of both
    operands, the rails.
    """
    generator = random.Random(2)
    configurations = [random_multiplier(generator, registers % 16) for registers in range(32)]
    stimuli, expected = [], []
    for parameters in configurations:
        reference, words, outputs, clocks = HardMultiplier(parameters), [], [], [0] * 4
        for _ in range(STEPS):
            pins = {pin: generator.getrandbits(1) for pin in MULTIPLIER_INPUTS}
            for letter in "AB":
                value = generator.choice([0, 1, 0x1FFFF, 0x20000, 0x3FFFF, *[generator.getrandbits(18)] * 5])
                pins.update({f"{letter}{bit}": value >> bit & 1 for bit in range(18)})
            pins.update({f"RST{number}": int(generator.random() < 0.05) for number in range(4)})
            pins.update({"SOURCEA": 0, "SOURCEB": 0})
            clocks = [1 - clocks[0]] * 4 if generator.random() < 0.5 else [generator.getrandbits(1) for _ in clocks]
            words.append([pins[pin] for pin in MULTIPLIER_INPUTS] + clocks)
            outputs.append(reference.step(pins, clocks))
        stimuli.append(words)
        expected.append(outputs)
    results = instances(
        "MULT18X18D",
        configurations,
        MULTIPLIER_INPUTS,
        MULTIPLIER_CLOCKS,
        MULTIPLIER_OUTPUTS,
        tmp_path,
        stimuli,
        simulator,
    )
    for parameters, wanted, got in zip(configurations, expected, results, strict=True):
        for step, (one, other) in enumerate(zip(wanted, got, strict=True)):
            assert other == one, (step, parameters)


@pytest.mark.parametrize(
    ("cell", "parameters", "message"),
    [
        ("DP16KD", {"RESETMODE": '"NONE"'}, "RESETMODE NONE, which this model does not have"),
        ("DP16KD", {"DATA_WIDTH_A": 36, "WRITEMODE_A": '"WRITETHROUGH"'}, "a port of 36 bits has write mode NORMAL"),
        ("MULT18X18D", {"SOURCEB_MODE": '"C_SHIFT"'}, "a mode that this model does not have"),
        ("MULT18X18D", {"REG_OUTPUT_CLK": '"CLK2"', "CLK2_DIV": '"DISABLED"'}, "CLK3_DIV must be ENABLED"),
    ],
)
def test_what_a_model_does_not_know_ends_the_simulation(cell, parameters, message, tmp_path):
    values = ", ".join(f".{name}({value})" for name, value in parameters.items())
    bench = f"`timescale 1ns / 1ps\nmodule bench; {cell} #({values}) cell0 (); initial #1 $finish; endmodule\n"
    model = (Path(CELLS_DIRECTORY) / f"{cell.lower()}.v").read_text()
    for output in run_bench(tmp_path, {"bench.v": bench, "model.v": model}):
        assert message in output
