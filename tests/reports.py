"""A synthesis report and its bitstream, as the tools would have left them."""

import hashlib

from hdl.tools.synthesis_report import REPORT_FILE, ClockTiming, SynthesisReport, Usage

BITSTREAM = b"bits"


def write_report(directory, baud):
    """Leave what `positron synthesize` leaves."""
    usage = Usage(1, 2)
    report = SynthesisReport(
        design="attention",
        board="ulx3s-85f",
        out_of_context=False,
        luts=usage,
        carry_luts=0,
        flip_flops=usage,
        block_rams=usage,
        multipliers=usage,
        clocks=(ClockTiming("clk", 60.0, 50.0),),
        seconds={},
        bitstream="attention.bit",
        bitstream_sha256=hashlib.sha256(BITSTREAM).hexdigest(),
        tools={},
        seed=1,
        inputs_sha256="",
        baud=baud,
    )
    directory.mkdir()
    (directory / report.bitstream).write_bytes(BITSTREAM)
    (directory / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
