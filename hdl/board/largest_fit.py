"""The largest attention accelerator that a board has block RAMs and multipliers for."""

from dataclasses import replace

from fixedpoint import Attention

from ..catalog.example_model import TYPICAL, example_model
from .boards import AttentionTop, Board
from .requirements import Requirements, requirements


def largest_embed_dim(parameters: Attention, board: Board, needs: Requirements) -> int:
    """Return the largest embed_dim below a model's that a board has room for, with the same heads
    and context; 0 where there is none.

    Args:
        parameters: Of the model that does not fit.
        board: The board.
        needs: What its accelerator needs.
    """
    heads = parameters.num_heads
    shape = replace(TYPICAL, heads=heads, context_length=parameters.context_length, hidden=1, vocabulary=1)

    def fits(channels: int) -> bool:
        model = example_model(replace(shape, channels=channels, weight_bits=parameters.query.weight_bits))
        top = AttentionTop(model.blocks[0].attention, board)
        plan = board.platform().prepare(top, "top", emit_src=False)
        found = requirements(plan.files["top.il"])
        return found.multipliers <= board.multipliers and found.block_rams <= board.block_rams

    # A channel takes a multiplier, so no more channels can be right than multipliers are left; then
    # by bisection, in heads.
    excess = max(needs.multipliers - board.multipliers, 1)
    high = max(parameters.embed_dim - excess, 0) // heads
    if high == 0 or fits(high * heads):
        return high * heads
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * heads) else (low, middle)
    return low * heads
