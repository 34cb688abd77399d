"""Platforms of boards that amaranth-boards lacks, or describes without a serial port."""

from amaranth.build import Attrs, Clock, Pins, PinsN, Resource
from amaranth.vendor import LatticeECP5Platform
from amaranth_boards.orangecrab_r0_2 import OrangeCrabR0_2_25FPlatform, OrangeCrabR0_2_85FPlatform
from amaranth_boards.resources import LEDResources, UARTResource

_LVCMOS33, _PULLED_UP = Attrs(IO_TYPE="LVCMOS33"), Attrs(IO_TYPE="LVCMOS33", PULLMODE="UP")


class ColorlightI5Platform(LatticeECP5Platform):
    """Colorlight i5 version 7.0 on MuseLab's extension board, whose USB adapter programs the FPGA
    and is its serial port.

    Pins as documented at https://github.com/wuxx/Colorlight-FPGA-Projects; serial port and reset as
    LiteX uses them.
    """

    device = "LFE5U-25F"
    package = "BG381"
    speed = "6"
    default_clk = "clk25"
    resources = (
        Resource("clk25", 0, Pins("P3", dir="i"), Clock(25e6), _LVCMOS33),
        *LEDResources(pins="U16", invert=True, attrs=_LVCMOS33),
        Resource("reset", 0, PinsN("K18", dir="i"), _PULLED_UP),
        UARTResource(0, tx="J17", rx="H18", attrs=_PULLED_UP),
    )
    connectors = ()


def orangecrab(size: str) -> LatticeECP5Platform:
    """Return the platform of an OrangeCrab r0.2 of size "25f" or "85f", with a serial port on the
    Feather's pins 0 (rx) and 1 (tx).
    """
    platform = {"25f": OrangeCrabR0_2_25FPlatform, "85f": OrangeCrabR0_2_85FPlatform}[size]()
    platform.add_resources([UARTResource(0, rx="0", tx="1", conn=("io", 0), attrs=_PULLED_UP)])
    return platform
