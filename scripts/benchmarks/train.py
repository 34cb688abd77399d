"""Time per training step, beside eager PyTorch if installed, and its share of peak speed.

Three shapes: S (2 layers, 4 heads, 64 wide, 64 tokens, batch 16), M (4, 4, 128, 64, batch 12), L
(6, 6, 192, 128, batch 16). NumPy and PyTorch take turns, a few steps each, and the medians are
compared, so that whatever else the machine does hits both. Where it does much, --processor-time
compares what one of two workers does, half a batch, with half of what PyTorch does on one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from model.config import ModelConfig, TrainingConfig
from model.data import random_batch
from model.training.workers import open_executor
from model.transformer import Transformer
from scripts.output import add_json_argument, format_table, write_json

SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "S": ({"num_layers": 2, "num_heads": 4, "embed_dim": 64, "max_seq_len": 64}, 16),
    "M": ({"num_layers": 4, "num_heads": 4, "embed_dim": 128, "max_seq_len": 64}, 12),
    "L": ({"num_layers": 6, "num_heads": 6, "embed_dim": 192, "max_seq_len": 128}, 16),
}
VOCAB_SIZE = 65
TURN = 5  # steps a turn
THREADS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--shapes", default="SML", help="which of S, M and L (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15, help="time for each shape (default: %(default)s)")
    parser.add_argument("--activation", default="gelu", help="activation of both models (default: %(default)s)")
    parser.add_argument("--processor-time", action="store_true", help="of half a batch on one core")
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    figures = measure(arguments.shapes, arguments.seconds, arguments.activation, arguments.processor_time)
    headings = ["shape", "NumPy ms", "PyTorch ms", "ratio", "GFLOP/s", "peak GFLOP/s", "share of peak"]
    rows = [
        [
            row["shape"],
            row["numpy_milliseconds"],
            row["pytorch_milliseconds"],
            row["ratio"],
            row["gflops"],
            row["peak_gflops"],
            row["peak_share"],
        ]
        for row in figures["shapes"]
    ]
    print(format_table(headings, rows))
    if not figures["pytorch"]:
        print("PyTorch is not installed; to compare: pip install torch")
    if arguments.json:
        write_json(arguments.json, figures)
    return 0


def measure(
    shapes: str = "SML", seconds: float = 15, activation: str = "gelu", processor_time: bool = False
) -> dict[str, Any]:
    """Return times for each shape, in milliseconds a step, and what they mean."""
    compare = importlib.util.find_spec("torch") is not None
    threads = 1 if processor_time else THREADS
    rows = [_measure_shape(name, seconds, activation, compare, threads) for name in shapes]
    return {"pytorch": compare, "threads": threads, "activation": activation, "shapes": rows}


def _measure_shape(name: str, seconds: float, activation: str, compare: bool, threads: int) -> dict[str, Any]:
    sizes, batch_size = SHAPES[name]
    config = ModelConfig(vocab_size=VOCAB_SIZE, activation=activation, **sizes)
    whole = TrainingConfig(batch_size=batch_size)
    training = dataclasses.replace(whole, batch_size=batch_size * threads // THREADS, num_workers=threads)
    clock = time.perf_counter if threads == THREADS else time.process_time
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, 200_000).astype(np.uint16)
    model = Transformer(config)
    with open_executor(config, training, 1 << 30, tokens, tokens[:1000]) as executor:
        executor.memory.parameters[:] = model.parameters.flat
        contestants: dict[str, Callable[[int], object]] = {"numpy": lambda step: executor.run(step, TURN)}
        if compare:
            contestants["pytorch"] = _pytorch_steps(model, whole, tokens, threads)
        contestants["peak"] = lambda step: _matrix_products(threads)
        times: dict[str, list[float]] = {key: [] for key in contestants}
        for contestant in contestants.values():
            contestant(0)  # warm-up: memory and caches
        step, end = TURN, time.monotonic() + seconds
        while time.monotonic() < end or len(times["numpy"]) < 5:
            for key, contestant in contestants.items():
                time.sleep(SETTLE_SECONDS)
                start = clock()
                contestant(step)
                times[key].append((clock() - start) / TURN)
            step += TURN
    times["pytorch"] = [each * threads / THREADS for each in times.get("pytorch", [])]
    medians = {key: statistics.median(values) for key, values in times.items() if values}
    # Forward and backward take three times the forward's operations; a causal row attends half the
    # context on average.
    tokens_a_step = training.batch_size * config.max_seq_len
    operations = 6 * model.count_multiply_accumulates((config.max_seq_len + 1) // 2)["total"] * tokens_a_step
    rate, peak = operations / medians["numpy"] / 1e9, threads * 2 * PEAK_SIZE**3 / medians["peak"] / 1e9
    ratio = statistics.median(a / b for a, b in zip(times["numpy"], times["pytorch"], strict=True)) if compare else None
    return {
        "shape": name,
        "numpy_milliseconds": 1000 * medians["numpy"],
        "pytorch_milliseconds": 1000 * medians["pytorch"] if compare else None,
        "ratio": ratio,
        "gflops": rate,
        "peak_gflops": peak,
        "peak_share": rate / peak,
        "turns": len(times["numpy"]),
    }


# The threads of BLAS and of PyTorch spin for a while after their last work, and would slow down the
# next measurement.
SETTLE_SECONDS = 0.1
PEAK_SIZE = 768
_LEFT, _RIGHT, *_PRODUCTS = (np.ones((PEAK_SIZE, PEAK_SIZE), np.float32) for _ in range(2 + THREADS))


def _matrix_products(threads: int) -> None:
    """Multiply large matrices, each thread its own: the peak speed of so many cores."""
    products = _PRODUCTS[:threads]
    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(lambda product: [np.matmul(_LEFT, _RIGHT, out=product) for _ in range(TURN)], products))


def _pytorch_steps(
    model: Transformer, training: TrainingConfig, tokens: np.ndarray, threads: int
) -> Callable[[int], object]:
    """Return a function that does a turn of training steps in PyTorch."""
    import torch

    from scripts.benchmarks.pytorch_reference import TorchTransformer

    torch.set_num_threads(threads)
    reference = TorchTransformer(model)
    optimizer = torch.optim.AdamW(
        reference.decay_groups(training.weight_decay), lr=training.learning_rate, betas=(training.beta1, training.beta2)
    )

    def run_turn(first: int) -> None:
        for step in range(first, first + TURN):
            inputs, targets = random_batch(tokens, training.batch_size, model.config.max_seq_len, 0, step)
            loss = reference.loss(torch.from_numpy(inputs.copy()), torch.from_numpy(targets.copy()))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(reference.parameters(), training.gradient_clip)
            optimizer.step()
            loss.item()

    return run_turn
