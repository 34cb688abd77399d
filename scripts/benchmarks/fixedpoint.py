"""Speed of the integer model beside the float one: evaluation and generation, in NumPy and C.

The model is a quantized run's, or M (4 layers, 4 heads, 128 wide, 64 tokens) with random weights,
quantized to 8 bits. The float model's forward pass and the integer model's loss go over the same
windows; generation fills the context from one token to the end at temperature 0.8. For a Llama
there is also a plain float program in C; it and the integer program take the likeliest tokens. The
contestants take turns, and medians are compared.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fixedpoint.errors import CompilerError
from fixedpoint.export.c_program import NativeTransformer, compile_program, stated_seconds
from fixedpoint.fast.transformer import FastDecoder, prepared
from fixedpoint.generation import generate_batch
from fixedpoint.quantization.calibration import QuantizationSettings, calibrate
from fixedpoint.quantization.quantize import quantize_transformer
from fixedpoint.transformer import QuantizedTransformer
from model.data import windows
from model.errors import InputError
from model.formats.llama2c import save_llama2c
from model.generation import generate as float_generation
from model.generation.cached_decoder import CachedDecoder
from model.generation.sampling import Sampling
from model.transformer import Transformer
from scripts.benchmarks.generate import CONFIG, TEMPERATURE
from scripts.benchmarks.train import SETTLE_SECONDS
from scripts.evaluation import BATCH
from scripts.output import add_json_argument, format_table, write_json
from scripts.runs import load_quantized, open_run

RANDOM_WINDOWS = 512
CALIBRATION_WINDOWS = 32
MINIMUM_TURNS = 5
FLOAT_PROGRAM = Path(__file__).with_name("float_llama.c")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", help="a quantized run (default: random weights)")
    parser.add_argument("--seconds", type=float, default=20, help="time for each of the two (default: %(default)s)")
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    if arguments.run is None:
        tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, RANDOM_WINDOWS * CONFIG.max_seq_len + 1)
        model = Transformer(CONFIG, seed=1)
        quantized = _quantize(model, tokens)
    else:
        directory = open_run(arguments.run)
        model, quantized = directory.load_model(), load_quantized(directory)
        tokens = np.asarray(directory.load_validation_tokens(model.config.vocab_size))
    evaluation = measure_evaluation(model, quantized, tokens, arguments.seconds)
    print(
        format_table(
            [f"evaluating {evaluation['windows']:,} windows", "µs a token", "times the float forward pass"],
            [[name, 1e6 * row["seconds_per_token"], row["ratio"]] for name, row in evaluation["contestants"].items()],
        )
    )
    print()
    generation = measure_generation(model, quantized, arguments.seconds)
    print(
        format_table(
            ["generating one sequence", "tokens/s", "times the float model"],
            [[name, row["tokens_per_second"], row["ratio"]] for name, row in generation["contestants"].items()],
        )
    )
    if generation["skipped"]:
        print(f"the C program is skipped: {generation['skipped']}")
    if arguments.json:
        write_json(arguments.json, {"evaluation": evaluation, "generation": generation})
    return 0


def measure_evaluation(
    model: Transformer, quantized: QuantizedTransformer, tokens: np.ndarray, seconds: float
) -> dict[str, Any]:
    """Return the time a token of the float forward pass and of the integer model's loss."""
    inputs, targets = windows(tokens, model.config.max_seq_len)

    def float_forward() -> None:
        for start in range(0, len(inputs), BATCH):
            model.forward(inputs[start : start + BATCH])

    times = _take_turns(
        {
            "float forward pass": _timed(float_forward),
            "integer loss": _timed(lambda: prepared(quantized).loss(inputs, targets)),
        },
        seconds,
    )
    contestants = {
        name: {
            "seconds_per_token": statistics.median(spent) / inputs.size,
            "ratio": _ratio(spent, times["float forward pass"]),
        }
        for name, spent in times.items()
    }
    return {"windows": len(inputs), "turns": len(times["integer loss"]), "contestants": contestants}


def measure_generation(model: Transformer, quantized: QuantizedTransformer, seconds: float) -> dict[str, Any]:
    """Return tokens a second of one sequence: float model, integer model, C program."""
    count = model.config.max_seq_len - 1
    exact, integer = CachedDecoder(model, 1), FastDecoder(quantized)
    sampling = Sampling(temperature=TEMPERATURE)
    contestants: dict[str, Callable[[], float]] = {
        "float": _timed(lambda: float_generation.generate_batch(model, [[0]], count, sampling=sampling, decoder=exact)),
        "integer": _timed(lambda: generate_batch(quantized, [[0]], count, temperature=TEMPERATURE, decoder=integer)),
    }
    skipped = None
    with tempfile.TemporaryDirectory() as directory:
        try:
            program = NativeTransformer.build(quantized, Path(directory) / "program")
        except CompilerError as error:
            skipped = str(error)
        else:
            contestants["integer, C program"] = lambda: program.timed([[0]], count, temperature=TEMPERATURE)[1]
            try:
                float_program = FloatProgram(model, Path(directory))
            except InputError:
                pass  # not a Llama
            else:
                contestants["integer, C program, likeliest"] = lambda: program.timed([[0]], count)[1]
                contestants["float, C program, likeliest"] = lambda: float_program.timed(0, count)[1]
        times = _take_turns(contestants, seconds)
    return {
        "skipped": skipped,
        "turns": len(times["float"]),
        "contestants": {
            name: {"tokens_per_second": count / statistics.median(spent), "ratio": _ratio(times["float"], spent)}
            for name, spent in times.items()
        },
    }


class FloatProgram:
    """A Llama in float32 as plain C, with all that the compiler can do for its speed."""

    def __init__(self, model: Transformer, directory: Path) -> None:
        """Compile the program in a directory.

        Raises:
            InputError: The model is not a Llama as llama2.c knows it.
            CompilerError: The compiler fails.
        """
        self.model = directory / "model.bin"
        save_llama2c(model, self.model)
        shutil.copy(FLOAT_PROGRAM, directory)
        self.executable = compile_program(directory, FLOAT_PROGRAM.name, "-Ofast", "-march=native", "-lm")

    def timed(self, first: int, count: int) -> tuple[list[int], float]:
        """Return the `count` likeliest tokens after token `first`, and the seconds they took."""
        command = [str(self.executable), str(self.model), str(first), str(count)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        return [int(word) for word in result.stdout.split()], stated_seconds(result.stderr)


def _take_turns(contestants: Mapping[str, Callable[[], float]], seconds: float) -> dict[str, list[float]]:
    """Return the seconds that each contestant says it took, turn by turn."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        contestant()  # warm-up: memory and caches
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times[next(iter(times))]) < MINIMUM_TURNS:
        for name, contestant in contestants.items():
            time.sleep(SETTLE_SECONDS)
            times[name].append(contestant())
    return times


def _timed(work: Callable[[], object]) -> Callable[[], float]:
    def contestant() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return contestant


def _ratio(numerators: list[float], denominators: list[float]) -> float:
    """Return the median of the quotients turn by turn."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def _quantize(model: Transformer, tokens: np.ndarray) -> QuantizedTransformer:
    settings = QuantizationSettings()
    inputs, _ = windows(tokens, model.config.max_seq_len)
    return quantize_transformer(model, calibrate(model, inputs[:CALIBRATION_WINDOWS], settings), settings)
