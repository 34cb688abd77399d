"""The sources of a command: all that Python itself imports, and what is only named in strings."""

import json
import subprocess
import sys

import pytest

from positron_start import PACKAGES, PROJECT
from scripts.sources import source_files

COMMANDS = ["train", "generate", "quantize", "simulate", "synthesize", "report", "demo"]
# Prints the files of the project that are loaded after importing each command, each from nothing.
PROGRAM = """
import importlib, json, sys
packages, commands = json.loads(sys.argv[1])
loaded = {}
for command in commands:
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]
    importlib.import_module(command)
    loaded[command] = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] in packages]
print(json.dumps(loaded))
"""


def test_all_that_python_imports_is_found():
    commands = [f"scripts.commands.{command}" for command in COMMANDS]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([PACKAGES, commands])],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT,
    )
    for command, files in json.loads(result.stdout).items():
        assert len(files) > 20
        assert {file.removeprefix(f"{PROJECT}/") for file in files} <= set(source_files(command)), command


@pytest.mark.parametrize(
    ("module", "file"),
    [
        ("model.training.workers", "model/training/worker_process.py"),
        ("fixedpoint.quantization.quantization_aware", "fixedpoint/quantization/quantization_aware_worker.py"),
        ("fixedpoint.export.c_program", "fixedpoint/export/native/transformer.c"),
        ("sim.simulators.runner", "sim/simulators/cocotb_process.py"),
        ("sim.simulators.runner", "sim/bench/cocotb_bench.py"),
        ("sim.simulators.native_bench", "sim/simulators/native/harness.cpp"),
        ("sim.netlist", "hdl/tools/cells/dp16kd.v"),
        ("scripts.report.page", "scripts/report/template.html"),
        ("scripts.commands.train", "scripts/quantization/options.py"),
        ("scripts.commands.train", "fixedpoint/quantization/calibration.py"),
    ],
)
def test_what_is_named_in_strings_and_functions_is_found(module, file):
    assert file in source_files(module)


def test_nothing_that_is_not_used():
    files = source_files("model.config")
    assert not [file for file in files if not file.startswith("model/")]
    assert "scripts/cli.py" not in source_files("scripts.commands.report")
    assert source_files("numpy") == ()
