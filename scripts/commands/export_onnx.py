"""Write the integer model as an ONNX graph with the same logits, bit for bit.

Weights are int8 with one power-of-two scale a row; every cast is written out, so that no runtime
rounds in its own way. The graph takes tokens (batch, length) and returns logits (batch, length,
vocabulary).

Example:
  positron export-onnx runs/demo --out model.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fixedpoint.export.onnx_export import export_onnx
from scripts.runs import add_run_argument, load_quantized, open_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_run_argument(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file (default: RUN/quantized.onnx)")


def run(arguments: argparse.Namespace) -> int:
    """Write the graph."""
    directory = open_run(arguments.run)
    path = arguments.out or directory.path / "quantized.onnx"
    quantized = load_quantized(directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    export_onnx(quantized, path)
    print(f"graph: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
