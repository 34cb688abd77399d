"""The layout of a decoder on the machine: from the exported files alone."""

import hashlib

from amaranth.back import rtlil

from fixedpoint import load_export, save_export
from hdl.decoder.machine import Machine
from hdl.decoder.plan import Plan
from sim.decoder_models import DecoderShape, random_decoder


def netlist_digest(model):
    machine = Machine(Plan(model, lanes=16, sampling=True))
    ports = [value for _, _, value in machine.signature.flatten(machine)]
    return hashlib.sha256(rtlil.convert(machine, ports=ports).encode()).hexdigest()
