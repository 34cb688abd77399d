import pytest

from hdl.tools.placement import core_of, summarize


@pytest.mark.parametrize(
    ("cell", "core"),
    [
        ("core.accelerator.machine.norms.row_TRELLIS_FF_Q_DI_LUT4_Z", "norms"),
        ("core.accelerator.machine.softmax_3.table_LUT4_Z_1_A", "softmax"),
        ("core.accelerator.machine.embedding.token.bank_0_DP16KD_DOA", "embedding"),
        ("core.accelerator.machine.start_TRELLIS_FF_Q", "top level"),
        ("core.link.kind_TRELLIS_FF_Q_1_DI_LUT4_Z_B_LUT4_C", "link"),
        ("receiver.timer_TRELLIS_FF_Q_DI_CCU2C_S0$CCU2_COMB1", "receiver"),
        ("$nextpnr_CCU2C_0$CCU2_COMB1", "top level"),
    ],
)
def test_a_cells_core_follows_from_its_name(cell, core):
    assert core_of(cell) == core


def test_cores_tiles_and_the_slowest_path():
    def cell(kind, place):
        return {"type": kind, "attributes": {"NEXTPNR_BEL": place} if place else {}}

    design = {
        "cells": {
            "core.norms.a_LUT4_Z": cell("TRELLIS_COMB", "X3/Y4/SLICEA.K0"),
            "core.norms.b_LUT4_Z": cell("TRELLIS_COMB", "X3/Y4/SLICEA.K1"),
            "core.engine.c_TRELLIS_FF_Q": cell("TRELLIS_FF", "X3/Y4/SLICEB.FF0"),
            "core.engine.d_MULT18X18D_P0": cell("MULT18X18D", "X9/Y2/MULT18_0"),
            "core.engine.e_LUT4_Z": cell("TRELLIS_COMB", ""),
            "pin": cell("TRELLIS_IO", "X0/Y1/PIOA"),
        }
    }

    def step(cell, x, y, delay, kind):
        return {"from": {"cell": cell}, "to": {"loc": [x, y]}, "delay": delay, "type": kind}

    slow = [
        step("core.engine.c_TRELLIS_FF_Q", 3, 4, 0.5, "clk-to-q"),
        step("core.norms.a_LUT4_Z", 3, 5, 2.25, "routing"),
    ]
    report = {
        "fmax": {"fast": {"achieved": 90, "constraint": 30}, "slow": {"achieved": 60, "constraint": 50}},
        "critical_paths": [
            {"from": "posedge fast", "to": "posedge fast", "path": []},
            {"from": "<async>", "to": "posedge slow", "path": []},
            {"from": "posedge slow", "to": "posedge slow", "path": slow},
        ],
    }
    found = summarize(design, report)
    assert found["cores"] == {
        "norms": {"luts": 2, "flip_flops": 0, "block_rams": 0, "multipliers": 0},
        "engine": {"luts": 0, "flip_flops": 1, "block_rams": 0, "multipliers": 1},
    }
    assert found["tiles"] == [[3, 4, 0], [9, 2, 1]]
    assert [(one["core"], one["nanoseconds"], one["wire"]) for one in found["path"]] == [
        ("engine", 0.5, False),
        ("norms", 2.25, True),
    ]
    assert summarize({"cells": {}}, {"fmax": {}, "critical_paths": []})["path"] == []
