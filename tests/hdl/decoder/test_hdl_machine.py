"""The whole decoder as a circuit against the specification, unit by unit and token by token."""

from dataclasses import replace

import numpy as np
import pytest
from amaranth.sim import Simulator
from machine_simulation import expected_of_units, first_difference, run_machine
from model_kinds import make_model

import hdl.decoder.units as units_module
from hdl.board.boards import BOARDS, DecoderTop
from hdl.board.decoder_estimate import best_estimate
from hdl.board.decoder_fit import fits, fitting_machine, shrunk
from hdl.board.selftest import token_stages, weight_stages
from hdl.decoder import row_ports
from hdl.decoder.accelerator import DecoderAccelerator
from hdl.decoder.machine import Machine
from hdl.decoder.plan import Plan
from hdl.decoder.probe import Unit, checksum
from hdl.decoder.score_rows import Temperature
from hdl.errors import CircuitError
from hdl.parts.payload import check_connections

SIZES = {"channels": 16, "num_heads": 4, "context_length": 4, "hidden": 20, "vocab_size": 11, "num_layers": 1}
KINDS = {
    "pairs of 4-bit weights": ({"weight_bits": 4}, 32, 4, 2),
    "one 8-bit weight a lane, wider norms": ({"weight_bits": 8}, 32, 8, 4),
    "3-bit weights, 10-bit activations": ({"weight_bits": 3, "activation_bits": 10}, 16, 2, 4),
    "rotary, gated, grouped queries": (
        {"weight_bits": 4, "rotary": True, "gated": True, "num_kv_heads": 2, "num_layers": 2},
        32,
        4,
    ),
    "a key as long as the rotation takes": (
        {"weight_bits": 8, "channels": 32, "num_heads": 4, "num_kv_heads": 2, "rotary": True, "gated": True},
        64,
        8,
        8,
    ),
    "one key head for all": ({"weight_bits": 4, "num_kv_heads": 1}, 32, 4),
    "five heads, a hidden size of 7, an odd vocabulary": (
        {"weight_bits": 4, "channels": 20, "num_heads": 5, "hidden": 7, "vocab_size": 13},
        40,
        4,
    ),
    "one head, a context of 2, three layers": (
        {"weight_bits": 6, "channels": 12, "num_heads": 1, "context_length": 2, "num_layers": 3},
        24,
        2,
    ),
    "rows longer than the lanes": ({"weight_bits": 4, "num_kv_heads": 1}, 8, 4),
}


SEVERAL_BANKS = {"rotary, gated, grouped queries", "3-bit weights, 10-bit activations"}


def machine_of(kind, seed=1):
    changes, *lanes = KINDS[kind]
    model = make_model(seed, **{**SIZES, **changes})
    return model, Machine(Plan(model, *lanes))


@pytest.mark.parametrize("kind", KINDS)
def test_every_unit_gives_what_the_specification_says_in_the_predicted_cycle(kind, monkeypatch):
    if kind in SEVERAL_BANKS:
        monkeypatch.setattr(units_module, "BANK_WORDS", 16)
        monkeypatch.setattr(row_ports, "BLOCK_WORDS", 16)
    model, machine = machine_of(kind)
    assert (machine.memories[0].latency > 2) == (kind in SEVERAL_BANKS)
    length = model.context_length
    tokens = np.random.default_rng(3).integers(0, model.vocab_size, length)
    given, cycles, seen = run_machine(machine, tokens, [True] + [False] * (length - 1), watch=True)
    for place, (values, wanted) in enumerate(zip(seen, expected_of_units(machine.plan, model, tokens), strict=True)):
        assert first_difference(values, wanted) is None, f"token {place}"
    assert given == model.forward(tokens[None])[0].argmax(axis=-1).tolist()
    assert cycles == [machine.cycles(position) for position in range(length)]


def test_a_temperature_beyond_the_circuit_s_is_refused():
    form = make_model(1, **SIZES).logits.output
    assert Temperature.of(form, 16.0).amount > Temperature.of(form, 1 / 16).amount == 0
    with pytest.raises(CircuitError, match=r"temperatures of 0.0625 to 16, .* not 17"):
        Temperature.of(form, 17.0)


def test_what_does_not_suit_the_lanes_is_refused_with_all_reasons():
    model = make_model(1, **{**SIZES, "weight_bits": 4})
    with pytest.raises(CircuitError, match=r"24 lanes .* lanes and 16 channels must divide one another"):
        Plan(model, 24)
    with pytest.raises(
        CircuitError, match="context_lanes of 5 must divide the 16 channels of keys; norm_lanes of 3 must divide 16"
    ):
        Plan(model, 32, 3, 5)
    rotary = make_model(1, **{**SIZES, "weight_bits": 8, "rotary": True})
    with pytest.raises(CircuitError, match="need an even number of rows a word"):
        Plan(rotary, 16)


def test_the_accelerator_takes_bytes_and_gives_token_cycles_and_checksum():
    model, machine = machine_of("pairs of 4-bit weights")
    accelerator = DecoderAccelerator(machine)
    count = accelerator.results
    stages = {stage.name: stage for stage in [*weight_stages(machine.plan), *token_stages(machine, [5])]}
    tokens = [5, 2, 9]
    context = next(stage for stage in token_stages(machine, tokens[:2]) if stage.unit == Unit.CONTEXT)
    value = next(matrix for matrix in machine.plan.matrices if matrix.name == "blocks.0.attention.value")
    weights = machine.plan.weight_words()
    weights[value.address + 1] ^= 1 << 9  # before the third token
    probes = [
        (stages["logits"], stages["logits"].checksum),
        (context, context.checksum),
        (weight_stages(machine.plan)[2], checksum(weights[: value.address + value.words])),
    ]
    assert probes[0][0].unit == Unit.MATRICES and probes[2][1] != probes[2][0].checksum
    results = []

    async def source(ctx):
        for place, (token, (stage, _)) in enumerate(zip(tokens, probes, strict=True)):
            fields = {"token": token, "unit": int(stage.unit), "last": stage.last}
            for byte in accelerator.request.const(fields).as_bits().to_bytes(5, "little"):
                ctx.set(accelerator.i.payload.data, byte)
                ctx.set(accelerator.i.payload.restart, place == 0)
                ctx.set(accelerator.i.valid, 1)
                await ctx.tick().until(accelerator.i.ready)

    async def sink(ctx):
        ctx.set(accelerator.o.ready, 1)
        for number in range(count * len(tokens)):
            if number == 2 * count:
                ctx.set(machine.internals.cache.internals.banks[0].data[value.address + 1], weights[value.address + 1])
            data, last = (
                await ctx.tick()
                .sample(accelerator.o.payload.data, accelerator.o.payload.last)
                .until(accelerator.o.valid)
            )
            assert last == (number % count == count - 1)
            results.append(data & 0xFFFF)

    simulator = Simulator(accelerator)
    simulator.add_clock(1e-6)
    simulator.add_testbench(source, background=True)
    simulator.add_testbench(sink)
    simulator.run()
    rows = [results[start : start + count] for start in range(0, len(results), count)]
    wanted = model.forward(np.array([tokens]))[0].argmax(axis=-1).tolist()
    assert [row[0] for row in rows[:2]] == wanted[:2]
    assert [row[1] for row in rows] == [machine.cycles(place) for place in range(3)]
    assert [row[2] | row[3] << 16 for row in rows] == [total for _, total in probes]
    sets = [matrix.sets for matrix in machine.plan.matrices]
    assert [row[4] for row in rows] == [sum(sets), context.last + 1, machine.plan.weight_depth]


def test_the_board_s_design_holds_the_whole_machine_each_time_it_is_made(monkeypatch):
    monkeypatch.setattr(row_ports, "BLOCK_WORDS", 8)  # tables in banks, whose words become rows
    _, machine = machine_of("pairs of 4-bit weights")
    board = BOARDS["ulx3s-85f"]
    designs = []
    for platform in (board.platform(), board.platform()):
        checked = check_connections(DecoderTop(machine, bytes(8), board), platform)
        designs.append(platform.prepare(checked, "decoder", emit_src=False).files["decoder.il"])
    assert designs[0] == designs[1]
    assert all(f"softmax_{head}" in designs[0] for head in range(machine.plan.kv_heads))


def test_the_estimate_chooses_what_the_board_has_room_for():
    model = make_model(1, **{**SIZES, "weight_bits": 4})
    boards = {name: best_estimate(model, BOARDS[name]) for name in ("ulx3s-25f", "ulx3s-85f")}
    for name, one in boards.items():
        assert one.needs.multipliers <= BOARDS[name].multipliers
        assert one.needs.block_rams <= BOARDS[name].block_rams
        assert one.first <= one.middle <= one.last
        assert one.last == Machine(one.plan).cycles(model.context_length - 1)
    assert boards["ulx3s-85f"].middle < boards["ulx3s-25f"].middle
    with pytest.raises(CircuitError, match="17 lanes do not suit its sizes"):
        best_estimate(model, BOARDS["ulx3s-85f"], 17)
    huge = make_model(
        1, channels=128, num_heads=4, context_length=64, hidden=512, vocab_size=65, num_layers=4, weight_bits=8
    )
    with pytest.raises(
        CircuitError, match=r"does not fit ulx3s-85f: with \d+ lanes it needs \d+ block RAMs, the board has 208"
    ):
        best_estimate(huge, BOARDS["ulx3s-85f"])


def test_what_would_have_to_shrink_fits_and_a_step_more_does_not():
    model = make_model(1, **{**SIZES, "context_length": 600, "num_layers": 3, "rotary": True, "gated": True})
    board = replace(BOARDS["ulx3s-45f"], name="small", block_rams=30)
    largest = {"head_dim": 2, "context_length": 259, "layers": 1}
    with pytest.raises(
        CircuitError, match="small has room for a width of 8, or for a context of 259, or for fewer lay"
    ):
        fitting_machine(model, board)
    assert all(fits(shrunk(model, **{name: size}), board) for name, size in largest.items())
    assert not any(fits(shrunk(model, **change), board) for change in ({"context_length": 296}, {"layers": 2}))
    tiny = shrunk(model, **largest, weight_bits=4)
    assert tiny.forward(np.array([[1, 2, 3]])).shape == (1, 3, 11)
    assert (tiny.context_length, len(tiny.blocks), tiny.blocks[0].down.columns) == (259, 1, 10)
