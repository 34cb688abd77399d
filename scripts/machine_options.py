"""The options that choose a decoder machine."""

from __future__ import annotations

import argparse

from hdl.catalog.names import BOARD_NAMES, DEFAULT_BOARD


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--board`, `--lanes` and `--smallest`."""
    parser.add_argument(
        "--board",
        metavar="BOARD",
        default=DEFAULT_BOARD,
        help=f"one of {', '.join(BOARD_NAMES)} (default: %(default)s)",
    )
    parser.add_argument(
        "--lanes", type=int, metavar="N", help="the decoder's multipliers (default: the fastest that fit)"
    )
    parser.add_argument(
        "--smallest",
        action="store_true",
        help="the decoder of the least logic instead of the fastest; it is placed and routed soonest",
    )
