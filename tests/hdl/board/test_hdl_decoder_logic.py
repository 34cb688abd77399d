"""The formulas for lookup tables against what synthesis has found."""

import pytest
from model_kinds import make_model

from hdl.board.decoder_logic import LINK, luts_by_unit, luts_of
from hdl.decoder.plan import Plan

WIDE = {"channels": 32, "num_heads": 4, "context_length": 32, "hidden": 128, "vocab_size": 40, "num_layers": 1}
NARROW = {"channels": 16, "num_heads": 4, "context_length": 16, "hidden": 64, "vocab_size": 27, "num_layers": 1}


# Of machines without their link: LUT4, two for a CCU2C, six for a TRELLIS_DPR16X4.
@pytest.mark.parametrize(("sizes", "lanes", "synthesized"), [(WIDE, (32, 2, 2), 9482), (NARROW, (16, 8, 4), 9279)])
def test_the_formulas_come_near_synthesis(sizes, lanes, synthesized):
    plan = Plan(make_model(1, **sizes, weight_bits=8), *lanes)
    assert luts_of(plan) - LINK == pytest.approx(synthesized, rel=0.1)
    assert luts_by_unit(plan)["engine"] == pytest.approx(47 * lanes[0])


def test_every_lane_costs_logic():
    model = make_model(1, **WIDE, weight_bits=8)
    smallest = luts_of(Plan(model, 32, 1, 1))
    assert all(luts_of(Plan(model, *lanes)) > smallest for lanes in ((64, 1, 1), (32, 2, 1), (32, 1, 2)))
