"""Two sequences interleaved on one machine, against the specification of each alone."""

from dataclasses import replace

import numpy as np
import pytest
from amaranth.sim import Simulator
from machine_simulation import run_payloads
from model_kinds import make_model

from fixedpoint import Sampler
from hdl.board.boards import BOARDS
from hdl.board.decoder_estimate import requirements_of
from hdl.board.selftest import token_stages
from hdl.board.two_sequences import estimate_of_two
from hdl.decoder.accelerator import DecoderAccelerator
from hdl.decoder.interleave import check_order
from hdl.decoder.machine import Machine
from hdl.decoder.plan import Plan
from hdl.decoder.program import Program, Work
from hdl.decoder.score_rows import Temperature
from hdl.decoder.units import Units
from hdl.errors import CircuitError

SIZES = {"channels": 16, "num_heads": 4, "context_length": 5, "hidden": 20, "vocab_size": 11}
MODERN = {"num_kv_heads": 2, "num_layers": 2, "weight_bits": 4, "rotary": True, "gated": True}
HEATS = (1.0, 5.3)  # of each sequence
# Which sequences run and which of them begin anew; sequence 0 fills its context by itself, 1 begins
# anew in the middle of it, each runs alone for some tokens.
RUNS = [("01", "01"), ("01", ""), ("1", ""), ("01", "1"), ("0", ""), ("01", ""), ("01", ""), ("1", "1"), ("01", "0")]


def run_two(machine, seed, runs):
    """Run both sequences with random tokens; return what was given and wanted, and the cycles."""
    plan, model = machine.plan, machine.plan.model
    generator = np.random.default_rng(seed)
    form = model.logits.output
    payloads, wanted, predicted = [], [], []
    rows = [[], []]
    for active, restarts in runs:
        payload, tokens, places = [], [None, None], [None, None]
        for number, row in enumerate(rows):
            fields = {"active": 0, "token": int(generator.integers(model.vocab_size)), "restart": 1}
            if str(number) in active:
                restart = str(number) in restarts
                if restart or len(row) == plan.context_length:
                    row.clear()
                row.append(fields["token"])
                fields |= {"active": 1, "restart": int(restart)}
                logits = model.forward(np.array([row]))[0, -1:]
                tokens[number], places[number] = int(logits.argmax()), len(row) - 1
                if plan.sampling and generator.random() < 0.8:
                    random = generator.integers(1, 1 << 32, 1, dtype=np.uint32)
                    fields |= {"sample": 1, "random": int(random[0]), **vars(Temperature.of(form, HEATS[number]))}
                    tokens[number] = int(Sampler(form, HEATS[number]).choose(logits, random)[0])
            payload.append(fields)
        payloads.append(payload)
        wanted.append(tokens)
        predicted.append(machine.cycles(places))
    given, cycles, _ = run_payloads(machine, payloads, seed=seed)
    given = [
        [one if token is not None else None for one, token in zip(*pair, strict=True)]
        for pair in zip(given, wanted, strict=True)
    ]
    return given, wanted, cycles, predicted


@pytest.mark.parametrize(
    ("changes", "lanes", "options", "runs"),
    [
        (MODERN | {"hidden": 10}, (16, 2, 4), {}, RUNS),
        # four passes, faster than the division takes them; fewer positions than the model has
        (
            {"num_kv_heads": 1, "num_layers": 1, "weight_bits": 8, "channels": 48, "hidden": 7},
            (24, 2, 1),
            {"context": 4, "sampling": True},
            RUNS[:5],
        ),
    ],
    ids=["rotary, gated, two layers", "one key head, a slow division, sampled"],
)
def test_each_sequence_writes_what_it_would_write_alone_in_the_predicted_cycles(changes, lanes, options, runs):
    machine = Machine(Plan(make_model(3, **SIZES | changes), *lanes, sequences=2, **options))
    given, wanted, cycles, predicted = run_two(machine, 8, runs)
    assert given == wanted
    assert cycles == predicted


def test_a_pair_takes_less_than_two_tokens_one_after_the_other():
    machine = Machine(Plan(make_model(3, **SIZES | MODERN), 32, sequences=2))
    alone = Machine(Plan(machine.plan.model, 32))
    for place in range(machine.plan.context_length):
        assert machine.cycles([place, None]) == machine.cycles([None, place]) == alone.cycles(place)
        assert machine.cycles([place, place]) < 1.7 * alone.cycles(place)
    steps = [[step for step in machine.program.steps if step.sequence == number] for number in (0, 1)]
    assert steps == [list(program.steps) for program in machine.programs[:2]]


def test_an_order_without_room_for_a_row_is_refused():
    program = Machine(Plan(make_model(3, **SIZES | MODERN), 32, sequences=2)).program

    def reordered(key):
        return Program(tuple(sorted(program.steps, key=key)), program.slots, program.passes)

    with pytest.raises(CircuitError, match="of sequence 1 overlaps the other's attention"):
        check_order(reordered(lambda step: (step.layer, step.work)))
    one = Machine(Plan(make_model(3, **SIZES | {"num_kv_heads": 1, "num_layers": 1, "weight_bits": 8}), 32)).program
    with pytest.raises(CircuitError, match="a third row of scores"):
        check_order(Program(tuple(sorted(one.steps, key=lambda step: step.work)), one.slots, one.passes))
    turned = [step for step in one.steps if step.work == Work.SCORES] + [
        step for step in one.steps if step.work == Work.VALUES
    ]
    with pytest.raises(CircuitError, match="its scores are not the oldest ones"):
        check_order(Program((turned[1], turned[4]), one.slots, one.passes))


def test_what_two_sequences_cannot_share_is_refused():
    model = make_model(3, **SIZES | {"weight_bits": 4, "num_layers": 1})
    with pytest.raises(CircuitError, match="norm_lanes of 1 are too few for two sequences with 4 rows a word"):
        Plan(model, 32, 1, sequences=2)
    with pytest.raises(CircuitError, match=r"sequences must be a whole number from 1 to 2 .*, not 3"):
        Plan(model, 32, sequences=3)
    with pytest.raises(CircuitError, match=r"context must be a whole number from 1 to 5 \(the model's\), not 6"):
        Plan(model, 32, context=6)
    plans = [Plan(model, 32, sequences=number, context=3) for number in (1, 2)]
    assert plans[1].cache_depth == 2 * plans[0].cache_depth == 2 * 2 * 2


def test_the_accelerator_takes_a_token_of_each_sequence_or_of_one():
    """Sequence 0 begins, with 1, continues alone, sits out, begins anew; with nobody active it is
    0's turn.
    """
    model = make_model(3, **SIZES | {"num_layers": 1, "weight_bits": 4, "context_length": 3})
    machine = Machine(Plan(model, 16, 2, sequences=2))
    accelerator = DecoderAccelerator(machine)
    runs = [((4, 1), (7, 1)), ((2, 0), None), (None, (5, 0)), ((9, 1), (3, 0)), None]
    rows, wanted, results = [[], []], [], []
    probe = next(stage for stage in token_stages(machine, [4, 2]) if stage.name == "final_norm")
    for run in runs:
        tokens, places = [0, 0], [None, None]
        for number, turn in enumerate(run or ((0, 0), None)):
            if turn is not None:
                row = rows[number]
                if turn[1] or len(row) == 3:
                    row.clear()
                row.append(turn[0])
                places[number] = len(row) - 1
                tokens[number] = int(model.forward(np.array([row]))[0, -1].argmax())
        wanted.append([*tokens, machine.cycles(places)])

    async def source(ctx):
        for run in runs:
            turns = [dict(zip(("token", "restart"), turn, strict=True), active=1) if turn else {} for turn in run or ()]
            fields = {"unit": int(probe.unit), "last": probe.last, "turns": turns or [{}, {}]}
            for byte in accelerator.request.const(fields).as_bits().to_bytes(accelerator.request.size // 8, "little"):
                ctx.set(accelerator.i.payload.data, byte)
                ctx.set(accelerator.i.valid, 1)
                await ctx.tick().until(accelerator.i.ready)
        ctx.set(accelerator.i.valid, 0)

    async def sink(ctx):
        ctx.set(accelerator.o.ready, 1)
        for number in range(len(runs) * accelerator.results):
            data, last = (
                await ctx.tick()
                .sample(accelerator.o.payload.data, accelerator.o.payload.last)
                .until(accelerator.o.valid)
            )
            assert last == ((number + 1) % accelerator.results == 0)
            results.append(data & 0xFFFF)

    simulator = Simulator(accelerator)
    simulator.add_clock(1e-6)
    simulator.add_testbench(source, background=True)
    simulator.add_testbench(sink)
    simulator.run()
    answers = [results[start : start + accelerator.results] for start in range(0, len(results), accelerator.results)]
    assert [answer[:3] for answer in answers] == wanted
    assert answers[1][3] | answers[1][4] << 16 == probe.checksum


def test_the_context_is_as_long_as_the_board_has_room_for():
    board = BOARDS["ulx3s-85f"]
    sizes = {"num_layers": 2, "channels": 128, "context_length": 512, "hidden": 256, "vocab_size": 65, "num_heads": 4}
    chosen = estimate_of_two(make_model(1, **sizes, weight_bits=4), board, 128)
    longer = replace(chosen.plan, context=chosen.plan.context_length + 1)
    assert 2 < chosen.plan.context_length < 512
    assert requirements_of(Units(longer)).block_rams > board.block_rams >= chosen.needs.block_rams
    machine = Machine(chosen.plan)
    assert chosen.last == -(-machine.cycles([chosen.plan.context_length - 1] * 2) // 2)
    with pytest.raises(CircuitError, match=r"two sequences .* with 128 lanes and 2 positions they need \d+ block RAMs"):
        estimate_of_two(make_model(1, **sizes | {"hidden": 1024}, weight_bits=8), board, 128)
