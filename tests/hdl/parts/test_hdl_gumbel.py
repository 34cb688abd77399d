# amaranth: UnusedElaboratable=no
import numpy as np
from amaranth.sim import Simulator

from fixedpoint.operators.gumbel import gumbel_noise, random_words
from hdl.parts.gumbel import GumbelNoise


def numbers_of_extreme_words(tokens):
    """Random numbers whose words lie far out: the nearest to both ends among 400,000."""
    numbers = np.random.default_rng(1).integers(1, 2**32, 400_000 // tokens, dtype=np.uint32)
    words = random_words(numbers, tokens)
    order = np.argsort(np.minimum(words, ~words), axis=None)[:300]
    return numbers[order // tokens].tolist(), (order % tokens).tolist()


def test_noise_is_the_specifications_17_stages_later():
    """Another random number and another token in every stage, with pauses; extreme words, and the
    ends of both inputs.
    """
    generator = np.random.default_rng(0)
    numbers, tokens = numbers_of_extreme_words(400)
    numbers += [0, 1, 2**31, 2**32 - 1, *generator.integers(1, 2**32, 1500).tolist()]
    tokens += [0, 65535, 65535, 0, *generator.integers(0, 1 << 16, 1500).tolist()]
    expected = [
        int(gumbel_noise(random_words(np.array(number, dtype=np.uint32), token + 1)[-1:])[0])
        for number, token in zip(numbers, tokens, strict=True)
    ]
    assert min(expected) < -3.9 * 2**11
    assert max(expected) > 17 * 2**11
    part, seen = GumbelNoise(), []
    assert part.latency == 17

    async def drive(context):
        stages = 0
        while len(seen) < len(expected):
            enabled = generator.random() < 0.9
            place = min(stages, len(numbers) - 1)
            context.set(part.en, enabled)
            # between words the inputs are something else
            context.set(part.random, numbers[place] if enabled else int(generator.integers(2**32)))
            context.set(part.index, tokens[place] if enabled else int(generator.integers(2**16)))
            await context.tick()
            stages += enabled
            if enabled and stages >= part.latency:
                seen.append(context.get(part.o))

    simulator = Simulator(part)
    simulator.add_clock(1e-6)
    simulator.add_testbench(drive)
    simulator.run()
    assert seen == expected
