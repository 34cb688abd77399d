"""The sequencer alone: steps of one word that wait for nothing come as its table gives them."""

from dataclasses import replace
from itertools import pairwise

import pytest
from amaranth.sim import Simulator

from hdl.catalog.example_model import SMALL, example_model
from hdl.decoder.machine import Machine
from hdl.decoder.plan import Plan
from hdl.decoder.program import Execution
from hdl.decoder.sequencer import Sequencer


@pytest.mark.parametrize("words", [[1] * 7, [1, 1, 4, 1, 2, 1, 1, 1], [5, 1, 1, 3]])
def test_steps_are_issued_when_the_execution_says(words):
    machine = Machine(Plan(example_model(SMALL), lanes=16))
    plan, latencies = machine.plan, replace(machine.latencies, embedding=0)
    likeness = next(step for step in machine.program.steps if step.words)
    steps = tuple(
        replace(likeness, words=count, wait=(), wait_last=(), address=place) for place, count in enumerate(words)
    )
    waiting = replace(steps[0], wait=machine.program.steps[0].wait)  # as programs do
    program = replace(machine.program, steps=(waiting, *steps[1:]))
    sequencer = Sequencer([program], plan, latencies.values_delay)
    issued = []

    async def bench(context):
        cycle = 0
        context.set(sequencer.events, 1)  # before the token: nothing waits
        await context.tick()
        context.set(sequencer.events, 0)
        context.set(sequencer.start, 1)
        for cycle in range(1, 60):
            if context.get(sequencer.issued.valid):
                issued.append((cycle, context.get(sequencer.issued.address)))
            await context.tick()
            context.set(sequencer.start, 0)

    simulator = Simulator(sequencer)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    execution = Execution(plan.slots, 1, [0], latencies)
    found = [execution.issue(step) for step in program.steps]
    wanted = [(one.begin + word, one.step.address + word) for one in found for word in range(one.end - one.begin + 1)]
    assert issued == wanted
    assert any(late.begin > early.end + 1 for early, late in pairwise(found)) == (1 in words[1:])
