from dataclasses import asdict

import pytest

from hdl import CircuitError
from sim.bench.stalls import Stalls


@pytest.mark.parametrize("settings", [{"source": 1.0}, {"sink": -0.1}, {"source": float("nan")}], ids=str)
def test_stalls_that_never_end_are_refused(settings):
    with pytest.raises(CircuitError, match="a stall is a probability from 0 to below 1"):
        Stalls(**settings)


@pytest.mark.parametrize("settings", [{"seed": 1 << 32}, {"seed": -1}, {"reset_after": -1}], ids=str)
def test_seeds_and_reset_times_out_of_range_are_refused(settings):
    with pytest.raises(CircuitError, match="a seed has 32 bits and a reset comes after 0 or more cycles"):
        Stalls(**settings)


def test_the_text_of_stalls_repeats_the_run():
    assert str(Stalls(7, 0.25, 0.5)) == "seed 7, source stall 0.25, sink stall 0.5"
    assert str(Stalls(7, reset_after=30)) == "seed 7, source stall 0, sink stall 0, reset after 30"
    assert str(Stalls(7, sink_delay=9)) == "seed 7, source stall 0, sink stall 0, sink delay 9"
    assert Stalls(**asdict(Stalls(3, 0.1, 0.2, 9, 5))) == Stalls(3, 0.1, 0.2, 9, 5)
    assert Stalls(3).at_full_speed
    assert not any(stalls.at_full_speed for stalls in (Stalls(3, 0.1), Stalls(3, sink=0.1), Stalls(3, sink_delay=1)))


def test_a_negative_sink_delay_is_refused():
    with pytest.raises(CircuitError, match="the sinks' delay is 0 or more cycles, not -1"):
        Stalls(sink_delay=-1)
