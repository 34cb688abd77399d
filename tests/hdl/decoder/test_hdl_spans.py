"""When units are at work, by the program, against a simulation of the machine."""

import json
from dataclasses import asdict

import pytest
from amaranth.sim import Simulator
from model_kinds import make_model

from hdl.decoder.machine import Machine
from hdl.decoder.plan import Plan
from hdl.decoder.spans import spans_and_gaps
from scripts.report import follow

SIZES = {"channels": 16, "num_heads": 4, "context_length": 4, "hidden": 20, "vocab_size": 11, "num_layers": 1}


def seen_at(machine):
    """Simulate one token; return the cycles, from the token taken, in which units give results."""
    ports = {
        "embedding": [machine.embedding.o.valid],
        "requantize": [machine.requantize.o.valid],
        "residual": [machine.residual.o.valid],
        "norms": [machine.norms.o.valid],
        "softmax": [machine.softmax[0].o.valid],
        "divide": [machine.divide.o.valid],
        "hidden": [machine.hidden.o.valid],
        "choice": [machine.choose.o.valid],
    }
    if machine.rotate is not None:
        ports["rotate"] = [machine.rotate.o.valid]
    found = {name: [] for name in ports}

    async def bench(ctx):
        ctx.set(machine.i.valid, 1)
        ctx.set(machine.i.payload.token, 3)
        await ctx.tick()
        ctx.set(machine.i.valid, 0)
        cycle = 1
        while not ctx.get(machine.o.valid):
            for name, signals in ports.items():
                if any(ctx.get(signal) for signal in signals):
                    found[name].append(cycle)
            await ctx.tick()
            cycle += 1
        found["end"] = cycle

    simulator = Simulator(machine)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return found


def check_cycles_of_tensors(model, spans, total):
    """What the report says: each tensor is there when, or after, what it is made of is."""
    timeline = json.loads(json.dumps({"spans": spans}, default=asdict))
    found = follow.cycles((operation.name for operation in model.operations), timeline)
    for operation in model.operations:
        unit, begin, end = found[operation.name]
        assert 0 < begin <= end <= total, (operation.name, unit)
        for name in operation.inputs:
            assert name not in found or found[name][1] <= begin, (operation.name, name)


@pytest.mark.parametrize("changes", [{"weight_bits": 4}, {"weight_bits": 4, "rotary": True, "gated": True}])
def test_a_unit_gives_results_only_while_it_is_at_work(changes):
    model = make_model(1, **{**SIZES, **changes})
    machine = Machine(Plan(model, 32, 4))
    spans, gaps, total = spans_and_gaps(machine, 0)
    check_cycles_of_tensors(model, spans, total)
    found = seen_at(machine)
    assert found.pop("end") == total
    for unit, cycles in found.items():
        own = [span for span in spans if span.unit == unit]
        # scores are only taken by the softmax, until it gives their numerators
        giving = [span for span in own if (unit, span.work) != ("softmax", "scores")]
        assert all(any(one.begin <= cycle <= one.end for one in own) for cycle in cycles), unit
        assert all(any(one.begin <= cycle <= one.end for cycle in cycles) for one in giving), unit
    engine = [span for span in spans if span.unit == "engine"]
    at_work = sum(span.end - span.begin + 1 for span in engine) - sum(
        gap.cycles for gap in gaps for span in engine if span.begin <= gap.begin <= span.end
    )
    words = sum(machine.program.words(step, 0) for step in machine.program.steps)
    assert at_work == words
    assert sum(gap.cycles for gap in gaps) + words == engine[-1].end + 1
    assert {gap.event for gap in gaps} >= {"normalized", "context", "hidden"}
