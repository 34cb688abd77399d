"""Names and defaults of the command line; without Amaranth, so that help works everywhere."""

import re
from pathlib import Path

# The cores of `hdl.catalog.registry`, in its order, read from its text because importing it needs
# Amaranth.
CORE_NAMES = tuple(re.findall(r'CoreEntry\(\s*"([^"]+)"', Path(__file__).with_name("registry.py").read_text("utf-8")))
# The shapes of `sim.decoder_models.SHAPES`: whole decoders that `positron campaign` verifies.
DECODER_NAMES = (
    "decoder-demo",
    "decoder-m",
    "decoder-stories260k",
    "decoder-gategpt",
    "decoder-zybogpt",
    "decoder-two",
)
# Those that are verified with a trained model's weights and activations; "layer-norm" is rms-norm
# where the model has that.
RUN_CORES = ("matrix-vector", "softmax", "layer-norm", "attention")
NETLIST_FAMILIES = ("ecp5", "ice40")  # of FPGAs whose netlists `sim.netlist` simulates
# What a core can be made from: a model's matrices and norms by their names in the manifest, those
# of a block without `blocks.N.`.
MATRICES = (
    "feed_forward.up",
    "feed_forward.down",
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "logits",
)
NORMS = ("attention_norm", "feed_forward_norm", "final_norm")
WHOLE_MODEL = ("logits", "final_norm")  # those that belong to no block
# The boards of `hdl.board.boards`, in its order.
BOARD_NAMES = (
    *("ulx3s-12f", "ulx3s-25f", "ulx3s-45f", "ulx3s-85f"),
    *("orangecrab-25f", "orangecrab-85f", "colorlight-i5", "colorlight-5a-75b"),
)
DEFAULT_BOARD = "ulx3s-85f"
DEFAULT_FREQUENCY = 50e6  # Hz
# the ULX3S's FT231X makes it exactly, and it divides every clock of whole megahertz
DEFAULT_BAUD = 1_000_000
DEFAULT_SEED = 1  # of place and route
