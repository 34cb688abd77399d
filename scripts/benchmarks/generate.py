"""Tokens a second of cached generation, for 1 and 32 sequences, beside PyTorch if installed.

The model is M (4 layers, 4 heads, 128 wide, 64 tokens), with random weights; sampling at
temperature 0.8. NumPy and PyTorch take turns, and medians are compared. Each turn fills the context
from one token to the end.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

from model.config import ModelConfig
from model.generation.cached_decoder import CachedDecoder
from model.generation.generate import generate_batch
from model.generation.sampling import Sampling
from model.transformer import Transformer
from scripts.benchmarks.train import SETTLE_SECONDS
from scripts.output import add_json_argument, format_table, write_json

CONFIG = ModelConfig(vocab_size=65, num_layers=4, num_heads=4, embed_dim=128, max_seq_len=64)
BATCHES = (1, 32)
TEMPERATURE = 0.8
THREADS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--seconds", type=float, default=10, help="time for each batch size (default: %(default)s)")
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    figures = measure(arguments.seconds)
    headings = ["sequences", "NumPy tokens/s", "PyTorch tokens/s", "times as fast"]
    rows = [
        [row["sequences"], row["numpy_tokens_per_second"], row["pytorch_tokens_per_second"], row["speedup"]]
        for row in figures["batches"]
    ]
    print(format_table(headings, rows))
    if not figures["pytorch"]:
        print("PyTorch is not installed; to compare: pip install torch")
    if arguments.json:
        write_json(arguments.json, figures)
    return 0


def measure(seconds: float = 10, batches: tuple[int, ...] = BATCHES) -> dict[str, Any]:
    """Return tokens a second for each batch size."""
    compare = importlib.util.find_spec("torch") is not None
    return {"pytorch": compare, "batches": [_measure_batch(batch, seconds, compare) for batch in batches]}


def _measure_batch(batch: int, seconds: float, compare: bool) -> dict[str, Any]:
    model = Transformer(CONFIG, seed=1)
    num_tokens = CONFIG.max_seq_len - 1
    sampling = Sampling(temperature=TEMPERATURE)
    decoder = CachedDecoder(model, batch)
    contestants: dict[str, Callable[[int], object]] = {
        "numpy": lambda seed: generate_batch(
            model, [[1]] * batch, num_tokens, sampling=sampling, seed=seed, decoder=decoder
        )
    }
    if compare:
        contestants["pytorch"] = _pytorch_generation(model, batch, num_tokens)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        contestant(0)
    turn, end = 0, time.monotonic() + seconds
    while time.monotonic() < end or turn < 5:
        turn += 1
        for name, contestant in contestants.items():
            time.sleep(SETTLE_SECONDS)
            start = time.perf_counter()
            contestant(turn)
            rates[name].append(batch * num_tokens / (time.perf_counter() - start))
    speedup = None
    if compare:
        speedup = statistics.median(a / b for a, b in zip(rates["numpy"], rates["pytorch"], strict=True))
    return {
        "sequences": batch,
        "numpy_tokens_per_second": statistics.median(rates["numpy"]),
        "pytorch_tokens_per_second": statistics.median(rates["pytorch"]) if compare else None,
        "speedup": speedup,
        "turns": turn,
    }


def _pytorch_generation(model: Transformer, batch: int, num_tokens: int) -> Callable[[int], object]:
    """Return a function that generates once in PyTorch."""
    import torch

    from scripts.benchmarks.pytorch_reference import TorchTransformer

    torch.set_num_threads(1 if batch == 1 else THREADS)  # more threads make a single row slower
    reference = TorchTransformer(model).eval()

    def generate(seed: int) -> object:
        torch.manual_seed(seed)
        with torch.inference_mode():
            tokens = torch.ones((batch, 1), dtype=torch.long)
            caches = reference.new_caches(batch)
            made = [tokens]
            for position in range(num_tokens):
                logits = reference.step(tokens, position, caches)
                tokens = torch.multinomial(torch.softmax(logits / TEMPERATURE, dim=-1), 1)
                made.append(tokens)
            return torch.cat(made, dim=1).tolist()

    return generate
