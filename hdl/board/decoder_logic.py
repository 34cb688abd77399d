"""How many lookup tables a decoder's machine takes: formulas for its units, fitted to syntheses."""

from fixedpoint import LayerNorm

from ..decoder.plan import Plan

LINK = 1250  # serial port, frames and clock
CONTROL = 800  # sequencer, counters, what is known of each command


def luts_by_unit(plan: Plan) -> dict[str, int]:
    """Return the lookup tables of a plan's units, by name, as nextpnr counts them."""
    attention = plan.first.attention.core
    bits, rows, kv = plan.activation_bits, plan.rows, plan.kv_channels
    sums = kv * attention.weighted_sum_bits
    if isinstance(plan.norms[0], LayerNorm):
        norms = 550 + 60 * rows + 420 * plan.norm_lanes
    else:
        norms = 390 + 100 * rows + 300 * plan.norm_lanes
    return {
        "engine": plan.lanes * (65 if plan.pairs else 47),
        # what a lane multiplies: a slice of the vectors, a query, a numerator
        "operands": round(plan.lanes * bits * (4.5 + plan.hidden_slices)) * plan.sequences,
        "divide": round(sums * (1.17 + 1.8 * (plan.slots - 1))) + 150 * plan.context_lanes,
        "norms": norms,
        "softmax": plan.kv_heads * (150 + 285 * plan.slots),
        "requantize": 240 * rows,
        "residual, embedding": 120 + 240 * rows,
        "hidden": 60 * rows if plan.gated else 0,
        "rotate": 150 * rows if plan.rotary else 0,
        "score": 300 * rows if plan.sampling else 0,
    }


def luts_of(plan: Plan) -> int:
    """Return the lookup tables of a plan's machine behind its serial link."""
    return LINK + CONTROL + sum(luts_by_unit(plan).values())
