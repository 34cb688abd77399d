"""The command that usually follows another, word for word."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from types import ModuleType

PORT = "/dev/ttyUSB0"


def run_of(command: ModuleType, arguments: argparse.Namespace) -> Path | None:
    """Return the run directory that a command has worked in, None where there is none."""
    if hasattr(command, "output_directory"):
        return Path(command.output_directory(arguments))
    return arguments.out if arguments.command in ("import", "demo") else getattr(arguments, "run", None)


def next_command(arguments: argparse.Namespace, run: Path | None) -> str | None:
    """Return the command line that usually follows; None where nothing does."""
    words = _without_run(arguments) if run is None else _after(arguments, str(run))
    return None if words is None else f"positron {shlex.join(words)}"


def _after(arguments: argparse.Namespace, run: str) -> list[str] | None:
    """Return the words that follow a command on a run."""
    match arguments.command:
        case "train":
            return ["generate", run]
        case "import":
            has_text = (Path(run) / "train_tokens.npy").exists()
            return ["quantize", run, *(() if has_text else ("--calibrate-on-samples", "100000"))]
        case "generate":
            quantized = (Path(run) / "quantized" / "manifest.json").exists()
            return ["report" if arguments.device else "simulate" if quantized else "quantize", run]
        case "quantize":
            return ["quantize" if arguments.sweep else "simulate", run]
        case "evaluate":
            return ["quantize", run, "--analyze"]
        case "simulate":
            return ["synthesize", run, "--estimate"]
        case "synthesize" if arguments.estimate:
            return ["synthesize", run]
        case "synthesize":
            return ["load", run, *(("--only", "attention") if arguments.only else ())]
        case "load" if arguments.only:
            return ["host", run, "--port", PORT]
        case "load":
            return ["selftest", PORT, run]
        case "selftest":
            return ["generate", run, "--device", arguments.port, "--temperature", "0"]
        case "export":
            return ["report", run]
        case "demo":
            return ["generate", run, "--quantized", "--prompt", "The "]
    return None


def _without_run(arguments: argparse.Namespace) -> list[str] | None:
    """Return the words that follow a command that works on no run."""
    match arguments.command:
        case "synthesize":
            return ["export-verilog", arguments.core, "--out", f"build/verilog/{arguments.core}"]
        case "export-verilog":
            return ["netlist", "--only", arguments.core]
        case "doctor":
            return ["demo"]
        case "prove":
            return ["campaign"]
        case "campaign":
            return ["netlist"]
        case "netlist":
            return ["cores"]
    return None
