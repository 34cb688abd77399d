"""The process that builds and runs a cocotb simulation; `sim.simulators.runner` starts it, in a
process group of its own.

cocotb's runner changes its environment, exits on errors and leaves its children running when it is
interrupted. In a process of its own that is harmless: the parent ends the whole group.
"""

import json
import os
import sys
from pathlib import Path

from cocotb_tools import runner as cocotb_runner

MAX_BUILD_JOBS = 2


def main() -> int:
    """Do the job described by the JSON file named on the command line."""
    job = json.loads(Path(sys.argv[1]).read_text())
    os.environ.pop("PYTEST_CURRENT_TEST", None)  # makes cocotb's runner judge the result itself
    cocotb_runner.MAX_PARALLEL_BUILD_JOBS = MAX_BUILD_JOBS
    simulator = cocotb_runner.get_runner(job["simulator"])
    common = {"hdl_toplevel": "top", "build_dir": job["directory"]}
    if job["task"] == "build":
        simulator.build(
            sources=job["sources"], build_args=job["build_args"], timescale=("1ns", "1ps"), always=True, **common
        )
        return 0
    simulator.test(
        test_module="sim.bench.cocotb_bench",
        hdl_toplevel_lang="verilog",
        test_dir=job["run_directory"],
        results_xml=str(Path(job["run_directory"]) / "results.xml"),
        extra_env=job["environment"],
        **common,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
