from dataclasses import asdict

import pytest

from hdl import CircuitError
from sim.stalls import Stalls


@pytest.mark.parametrize("settings", [{"source": 1.0}, {"sink": -0.1}, {"source": float("nan")}], ids=str)
def test_probabilities_that_end_never_are_refused(settings):
    with pytest.raises(CircuitError, match="a stall is a probability from 0 to below 1"):
        Stalls(**settings)


@pytest.mark.parametrize("settings", [{"seed": 1 << 32}, {"seed": -1}, {"reset_after": -1}], ids=str)
def test_seeds_and_moments_out_of_range_are_refused(settings):
    with pytest.raises(CircuitError, match="a seed has 32 bits and a reset comes after 0 or more cycles"):
        Stalls(**settings)


def test_a_message_says_all_that_repeats_a_run():
    assert str(Stalls(7, 0.25, 0.5)) == "seed 7, source stall 0.25, sink stall 0.5"
    assert str(Stalls(7, reset_after=30)) == "seed 7, source stall 0, sink stall 0, reset after 30"
    assert Stalls(**asdict(Stalls(3, 0.1, 0.2, 9))) == Stalls(3, 0.1, 0.2, 9)
    assert Stalls(3).at_full_speed and not Stalls(3, sink=0.1).at_full_speed
