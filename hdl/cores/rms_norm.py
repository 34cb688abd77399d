"""RMSNorm as a circuit, in whole numbers up to the reciprocal square root."""

import fixedpoint

from .row_norm import RowNorm


class RMSNorm(RowNorm):
    """`fixedpoint.RMSNorm` as a circuit: rows of C elements in, normalized and scaled rows of C
    elements out.

    Equations, with Q the row's sum of squares: `v = C·Q + epsilon`, `d_i = C·x_i`,
    `n_i = requantize(d_i / sqrt(v))`, `y_i = requantize(n_i · scale_i)`.

    Latency: `latency` = T + K + R + D cycles from a row's last word taken to its first result
    offered; then one word a cycle. T = ceil(log2 lanes); K = 4 + bits of C's odd factor, to settle
    v; R = ceil(log2 ceil(variance_bits / 2)) + 2, the root's; D = 14, the output's.
    Throughput: a word a cycle, rows back to back without a gap: `lanes` elements a cycle.
    Resources: hard multipliers: 4 a lane (x², two halves of d / sqrt(v), scale), one more a lane
    where C is not a power of two. A FIFO of a row and T + K + R - 1 words (- 4 with the additional
    multiplier), rounded up to a power of two; a memory of C scales; the root's table. In simulation
    a `last` that does not agree with the count is an assertion's failure; in hardware the count
    alone decides.

    Source: Zhang, Sennrich, "Root Mean Square Layer Normalization", arXiv:1910.07467.

    Attributes:
        parameters: Formats and scale.
        lanes: Elements a cycle; divides C.
        words: Words a row, C / lanes.
        latency: The formula above.
        i: In, stream of {data: input format, last}: C / lanes words, `last` on the final one; with
            several lanes `data` is an array.
        o: Out, stream of {data: output format, last}, of the same form.

    Internals:
        As `RowNorm`: a row waits in a FIFO for the root that it is divided by.
    """

    specification = fixedpoint.RMSNorm
