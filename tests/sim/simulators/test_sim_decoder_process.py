"""A compiled decoder machine writes the integer model's text."""

import pytest
from model_kinds import make_model

from fixedpoint.generation import generate_batch
from hdl.board.selftest import token_stages, weight_stages
from hdl.decoder.accelerator import Turn
from hdl.decoder.machine import Machine
from hdl.decoder.plan import Plan
from hdl.decoder.probe import Unit
from hdl.errors import ToolError
from sim.simulators.decoder_process import SimulatedDecoder, stream_tokens, write_together


@pytest.mark.slow
def test_the_compiled_decoder_writes_the_integer_models_tokens(simulation_builds):
    model = make_model(
        1, channels=8, num_heads=2, context_length=5, hidden=12, vocab_size=11, num_layers=1, weight_bits=4
    )
    with SimulatedDecoder(Machine(Plan(model, 16, sampling=True)), simulation_builds, probed=True) as decoder:
        for stage in [*weight_stages(decoder.machine.plan), *token_stages(decoder.machine, [3, 1])]:
            decoder.ask([Turn(3, True)], Unit.NONE, 0)
            assert decoder.ask([Turn(1, False)], stage.unit, stage.last) == stage.checksum
            assert decoder.ask([Turn(2, False)], stage.unit, stage.last) != stage.checksum or stage.unit == Unit.WEIGHTS
        for prompt, temperature, seed in (([3, 1, 2], 0.0, 0), ([7], 1.5, 4), ([1, 2, 3, 4, 5, 6, 7], 8.0, 9)):
            sequence = list(prompt)
            tokens = stream_tokens(decoder, model, sequence, temperature, seed)
            for _ in range(12):  # beyond a full context
                next(tokens)
            wanted = generate_batch(model, [prompt], 12, temperature=temperature, seed=seed)[0]
            assert sequence[len(prompt) :] == wanted
        assert decoder.cycles[:3] == [decoder.machine.cycles(position) for position in range(3)]
        decoder.close()
        with pytest.raises((ToolError, ValueError)):
            decoder.step([Turn(1, True)])


@pytest.mark.slow
def test_two_texts_of_a_compiled_decoder_are_those_of_the_integer_model(simulation_builds):
    model = make_model(
        2, channels=8, num_heads=2, context_length=5, hidden=12, vocab_size=11, num_layers=1, weight_bits=4
    )
    with SimulatedDecoder(Machine(Plan(model, 16, sampling=True, sequences=2)), simulation_builds) as decoder:
        prompts = [[3, 1, 2, 9], [7]]
        given = write_together(decoder, model, prompts, 12, temperature=2.0, seed=4)
        alone = write_together(decoder, model, [[5]], 3)
        machine = decoder.machine
    assert given == [
        generate_batch(model, [prompt], 12, temperature=2.0, seed=4 + number)[0]
        for number, prompt in enumerate(prompts)
    ]
    assert alone == generate_batch(model, [[5]], 3)
    assert decoder.cycles[:2] == [machine.cycles([place, place]) for place in range(2)]
    assert decoder.cycles[-3:] == [machine.cycles(place) for place in range(3)]
