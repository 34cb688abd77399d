# amaranth: UnusedElaboratable=no
import dataclasses

import numpy as np
import pytest
from amaranth.back import rtlil
from amaranth.hdl import Instance, Module, Signal, signed
from amaranth.lib import memory
from fixedpoint_builders import random_attention

from hdl.board.boards import BOARDS
from hdl.board.largest_fit import largest_embed_dim
from hdl.board.requirements import DoesNotFit, Requirements, block_rams, refuse_if_too_large, requirements, shortage
from hdl.decoder.attention import Attention


def multiply(count, width, constant=False):
    m = Module()
    ports = []
    for place in range(count):
        a, b = Signal(signed(width), name=f"a{place}"), Signal(signed(width), name=f"b{place}")
        product = Signal(signed(2 * width), name=f"product{place}")
        m.d.sync += product.eq(a * (77 if constant else b))
        ports += [a, b, product]
    return rtlil.convert(m, ports=ports)


def remember(depth, width):
    m = Module()
    m.submodules.memory = one = memory.Memory(shape=width, depth=depth, init=[])
    read, write = one.read_port(), one.write_port()
    return rtlil.convert(m, ports=[read.addr, read.data, read.en, write.addr, write.data, write.en])


@pytest.mark.parametrize(
    ("depth", "width", "expected"),
    [
        (512, 36, 1),
        (513, 36, 2),
        (1024, 18, 1),
        (16384, 1, 1),
        (16385, 1, 2),
        (256, 512, 15),
        (3072, 1024, 171),
        (512, 1024, 29),
    ],
)
def test_block_rams_of_a_memory(depth, width, expected):
    assert block_rams(depth, width) == expected


def test_small_memories_may_be_lookup_tables():
    assert requirements(remember(64, 8)) == Requirements(0, 0)
    assert requirements(remember(1024, 18)) == Requirements(1, 0)
    assert requirements(remember(256, 512)) == Requirements(15, 0)


def test_multipliers():
    assert requirements(multiply(3, 8)) == Requirements(0, 3)
    assert requirements(multiply(1, 18)) == Requirements(0, 1)
    assert requirements(multiply(1, 19)) == Requirements(0, 4)
    assert requirements(multiply(5, 8, constant=True)) == Requirements(0, 0)


def test_hand_instantiated_cells_count():
    m = Module()
    outputs = [Signal(name=f"o{place}") for place in range(3)]
    m.submodules.first = Instance("MULT18X18D", o_P0=outputs[0])
    m.submodules.second = Instance("MULT18X18D", o_P0=outputs[1])
    m.submodules.memory = Instance("DP16KD", o_DOA0=outputs[2])
    assert requirements(rtlil.convert(m, ports=outputs)) == Requirements(1, 2)


def test_what_does_not_fit_is_refused_with_numbers():
    board = BOARDS["ulx3s-25f"]
    assert refuse_if_too_large(multiply(28, 8), board) == Requirements(0, 28)
    with pytest.raises(
        DoesNotFit,
        match=r"needs 29 multipliers, ulx3s-25f has 28; choose a larger board \(ulx3s-45f, ulx3s-85f, orangecrab-85f\) or .* smaller embed_dim",
    ) as refused:
        refuse_if_too_large(multiply(29, 8), board)
    assert refused.value.needs == Requirements(0, 29)
    with pytest.raises(DoesNotFit, match=r"needs 57 block RAMs, ulx3s-25f has 56; choose a larger board"):
        refuse_if_too_large(remember(512, 57 * 36), board)


def test_all_that_is_lacking_is_named_and_no_larger_board_where_there_is_none():
    assert shortage(BOARDS["ulx3s-45f"], {"multipliers": 72, "block_rams": 108}) is None
    assert shortage(BOARDS["ulx3s-45f"], {"multipliers": 73, "block_rams": 109}) == (
        "the design needs 73 multipliers, ulx3s-45f has 72 and 109 block RAMs, ulx3s-45f has 108; "
        "choose a larger board (ulx3s-85f, orangecrab-85f) or train a model with a smaller embed_dim"
    )
    # What a larger board has of the one does not help with the other.
    for name in ("ulx3s-25f", "ulx3s-85f"):
        message = shortage(BOARDS[name], {"multipliers": 157, "luts": 100})
        assert message.endswith(", and no board has enough; train a model with a smaller embed_dim")
        assert "larger board" not in message


@pytest.mark.parametrize("multipliers, largest", [(20, 16), (19, 12), (4, 0)])
def test_the_largest_embed_dim_that_fits(multipliers, largest):
    parameters = random_attention(np.random.default_rng(0), channels=24, num_heads=4, context_length=8)
    board = dataclasses.replace(BOARDS["ulx3s-25f"], multipliers=multipliers)
    assert largest_embed_dim(parameters, board, Requirements(0, 26)) == largest


def test_an_attention_circuit_needs_a_multiplier_a_channel_and_four_to_normalize():
    parameters = random_attention(np.random.default_rng(0), channels=16, num_heads=4, context_length=32)
    core = Attention(parameters)
    assert requirements(rtlil.convert(core)).multipliers == core.multipliers == 16 + 4
