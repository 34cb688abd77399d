# amaranth: UnusedElaboratable=no
import json
from collections import Counter

import numpy as np
import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.sim import Simulator
from test_hdl_multiplier import ECP5

from hdl import CircuitError
from hdl.parts.banked_memory import BankedMemory
from hdl.tools.output_registers import fold_output_registers
from hdl.tools.synthesis import READ_SCRIPT
from hdl.tools.toolchain import find_tool, run_tool


@pytest.mark.parametrize("depth", [1, 7, 8, 9, 30])
@pytest.mark.parametrize("parts", [0, 1, 3])
def test_words_are_what_was_written_last(depth, parts):
    """Random reads, and writes of any parts, of up to four banks, the last one shorter."""
    generator = np.random.default_rng(depth + parts)
    contents = [int(word) for word in generator.integers(1 << 12, size=depth)]
    memory = BankedMemory(12, depth, contents[: depth - 1], bank_words=8, write_parts=parts)
    contents[depth - 1] = 0
    assert (memory.banks, memory.latency) == (-(-depth // 8), 2 if depth <= 8 else 4)
    seen, wanted = [], []

    async def feed(context):
        for _ in range(300):
            address, place, data = (int(generator.integers(limit)) for limit in (depth, depth, 1 << 12))
            enable = int(generator.integers(1 << parts)) * int(address != place)
            context.set(memory.address, address)
            wanted.append(contents[address])
            if parts:
                context.set(memory.write_address, place)
                context.set(memory.write_data, data)
                context.set(memory.write_enable, enable)
                for part in range(parts):
                    if enable >> part & 1:
                        mask = (1 << 12 // parts) - 1 << part * (12 // parts)
                        contents[place] = contents[place] & ~mask | data & mask
            seen.append(context.get(memory.word))
            await context.tick()

    simulation = Simulator(memory)
    simulation.add_clock(1e-6)
    simulation.add_testbench(feed)
    simulation.run()
    assert seen[memory.latency :] == wanted[: -memory.latency]


# width, depth, bank_words, write_parts, block RAMs
SYNTHESIZED = [
    (36, 1300, 512, 0, 3),
    (72, 600, 512, 4, 4),
    (36, 600, 1024, 1, 2),
    (34, 500, 512, 2, 1),
]


class Memories(wiring.Component):
    """Memories beside each other, each between registers."""

    def __init__(self, memories):
        self.memories = memories
        members = [
            (name, number, member)
            for number, one in enumerate(memories)
            for name, member in one.signature.members.items()
        ]
        super().__init__({f"{name}_{number}": member for name, number, member in members})

    def elaborate(self, platform):
        m = Module()
        for number, memory in enumerate(self.memories):
            m.submodules[f"memory_{number}"] = memory
            for name, member in memory.signature.members.items():
                inside, outside = getattr(memory, name), getattr(self, f"{name}_{number}")
                m.d.sync += inside.eq(outside) if member.flow is wiring.In else outside.eq(inside)
        return m


def test_synthesis_takes_the_block_rams_that_are_stated_and_their_output_registers(tmp_path):
    """And, beside the choice of the bank, a few lookup tables at most."""
    if find_tool("yosys") is None:
        pytest.skip("Yosys is not installed")
    generator, memories = np.random.default_rng(0), []
    for width, depth, bank_words, parts, _ in SYNTHESIZED:
        words = [int.from_bytes(generator.bytes(width), "little") % (1 << width) for _ in range(depth)]
        memories.append(BankedMemory(width, depth, words, bank_words=bank_words, write_parts=parts))
    text = rtlil.convert(Memories(memories), name="words", platform=ECP5, emit_src=False)
    (tmp_path / "words.il").write_text(text)
    run_tool(
        "yosys", ("-q", "-p", f"{READ_SCRIPT.format(name='words')}; synth_ecp5 -top words -json words.json"), tmp_path
    )
    design = json.loads((tmp_path / "words.json").read_text())["modules"]["words"]
    cells = Counter(cell["type"] for cell in design["cells"].values())
    assert cells["DP16KD"] == sum(block_rams for *_, block_rams in SYNTHESIZED)
    assert fold_output_registers(design) == sum(memory.width * memory.banks for memory in memories)
    assert cells["LUT4"] <= sum(2 * memory.width + 20 for memory in memories if memory.banks > 1)
    rams = [cell["parameters"] for cell in design["cells"].values() if cell["type"] == "DP16KD"]
    assert all("OUTREG" in (ram["REGMODE_A"], ram["REGMODE_B"]) for ram in rams)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bank_words": 12}, "bank_words must be a power of two, not 12"),
        ({"write_parts": 5}, "words of 8 bits cannot be written in 5 equal parts"),
        ({"write_parts": 9}, "write_parts must be a whole number from 0 to 8"),
        ({"init": [256]}, r"init must be at most 6 words of 8 bits, unsigned, not \[256\]"),
        ({"init": [0] * 7}, "init must be at most 6 words of 8 bits"),
    ],
)
def test_impossible_memories_are_refused(change, message):
    with pytest.raises(CircuitError, match=message):
        BankedMemory(**{"width": 8, "depth": 6, "bank_words": 4} | change)
