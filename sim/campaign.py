"""Campaigns: a core against its specification on a million random vectors and more.

The vectors are made in chunks. Chunk k of a campaign uses seed + k for everything: the vectors, the
stalls (each seed has one of `STALLS`), the cycle of the reset in its middle. So a chunk that failed
is repeated alone by a campaign of one chunk with its seed.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.lib import wiring

from hdl import CircuitError
from hdl.catalog.registry import CoreEntry
from model.files import atomic_write

from .bench.bench import BenchFailure
from .bench.core_benches import CoreWords, core_words, wired
from .bench.harness import Harness
from .bench.payload import pack_words
from .bench.stalls import Stalls
from .simulators.native_bench import NativeBench, NativeResult

CHUNK = 20_000  # vectors; the smallest unit of time limits and of repetition
SINK_DELAY = 10_000  # longer than a token of a large core takes
# Probabilities (source, sink) of a pause, and the sinks' delay after reset. Their number is
# odd, so that odd and even seeds get all of them.
STALLS = (
    (0.0, 0.0, 0),
    (0.3, 0.3, SINK_DELAY),
    (0.6, 0.1, 0),
    (0.1, 0.6, 0),
    (0.0, 0.0, SINK_DELAY),
    (0.5, 0.5, 0),
    (0.1, 0.1, 0),
)
RESET_BITS = 12  # the reset in the middle comes within 2**12 cycles


@dataclass(frozen=True)
class CampaignResult:
    """The result of a campaign.

    Attributes:
        core: The core's name.
        seed: Of the first chunk.
        vectors: Rows, tokens or values given, all results of which were compared.
        wanted: Vectors asked for; more than `vectors` if time was up or a chunk failed.
        results: Words compared on the outputs.
        cycles: Clock cycles simulated.
        seconds: Wall time, building left out.
        failure: The difference; empty if all were equal.
        failed_seed, failed_vectors: The campaign that repeats the failure; None if there is none.
    """

    core: str
    seed: int
    vectors: int
    wanted: int
    results: int
    cycles: int
    seconds: float
    failure: str = ""
    failed_seed: int | None = None
    failed_vectors: int | None = None


def stalls_of(entry: CoreEntry, seed: int) -> Stalls:
    """Return the stalls of a chunk by its seed, with a reset in the middle."""
    source, sink, sink_delay = STALLS[seed % len(STALLS)]
    generator = np.random.default_rng((seed, len(STALLS)))
    reset_after = int(generator.integers(1, 1 << int(generator.integers(1, RESET_BITS + 1))))
    # What leaves by a wire does not wait: a receiver whose sink pauses would lose bytes.
    return (
        Stalls(seed, source, 0.0, reset_after) if entry.wires else Stalls(seed, source, sink, reset_after, sink_delay)
    )


def build_bench(entry: CoreEntry, core: wiring.Component, build_directory: str | Path) -> NativeBench:
    """Return the compiled bench of a component that an entry built; the component is elaborated.

    Raises:
        ToolError: Verilator, Yosys or a compiler is missing or failed.
    """
    return NativeBench.build(entry.name, Harness(wired(entry, core), entry.constants), Path(build_directory))


def run_campaign(
    entry: CoreEntry,
    bench: NativeBench,
    vectors: int,
    seed: int,
    *,
    seconds: float | None = None,
    chunk: int = CHUNK,
    progress: Callable[[int], None] = lambda count: None,
) -> CampaignResult:
    """Run a core on random vectors until all are done, one is wrong, or time is up.

    The next chunk's golden results are computed while a chunk is simulated.

    Args:
        entry: The core's entry.
        bench: Its compiled bench.
        vectors: How many rows, tokens or values, as fits the core.
        seed: Of the first chunk; chunk k has `seed + k`.
        seconds: No chunk begins after so many seconds; None: no limit.
        chunk: Vectors in a chunk, the last one's rest left out.
        progress: Called with the number of vectors done after each chunk.

    Raises:
        CircuitError: No vectors, or a seed that is negative or too large.
    """

    def prepare(count: int, seed: int) -> CoreWords:
        return core_words(entry, core, count, seed, pack_words)

    def execute(words: CoreWords, seed: int) -> NativeResult:
        return bench.run(words.inputs, words.outputs, stalls_of(entry, seed), expected_cycles=words.cycles)

    core = entry.example()
    return run_chunks(entry.name, vectors, seed, chunk, prepare, execute, seconds=seconds, progress=progress)


def run_chunks(
    name: str,
    vectors: int,
    seed: int,
    chunk: int,
    prepare: Callable[[int, int], Any],
    execute: Callable[[Any, int], NativeResult],
    *,
    seconds: float | None = None,
    progress: Callable[[int], None] = lambda count: None,
    kept: Path | None = None,
) -> CampaignResult:
    """Run chunk after chunk until all are done, one is wrong, or time is up.

    Args:
        name: Of the core, for the result.
        vectors: How many, as fits the core.
        seed: Of the first chunk; chunk k has `seed + k`.
        chunk: Vectors in a chunk, the last one's rest left out.
        prepare: Makes stimuli and golden results from a number of vectors and a seed, while the
            chunk before is simulated.
        execute: Simulates what `prepare` made with that seed; raises BenchFailure.
        seconds: No chunk begins after so many seconds; None: no limit.
        progress: Called with the number of vectors done after each chunk.
        kept: A file that keeps the result of the chunks done, for a campaign that goes on.

    Raises:
        CircuitError: No vectors, or a seed that is negative or too large.
    """
    if vectors < 1 or chunk < 1:
        raise CircuitError(f"a campaign needs at least one vector in a chunk, not {vectors} in chunks of {chunk}")
    chunks = -(-vectors // chunk)
    if not 0 <= seed <= (1 << 32) - chunks:
        raise CircuitError(f"the seeds of a campaign, {seed} to {seed + chunks - 1}, must have 32 bits")

    def size(number: int) -> int:
        return min(chunk, vectors - number * chunk)

    result = CampaignResult(name, seed, 0, vectors, 0, 0, 0.0)
    if kept is not None and kept.exists():
        result = dataclasses.replace(CampaignResult(**json.loads(kept.read_text(encoding="utf-8"))), wanted=vectors)
    first, before, began = result.vectors // chunk, result.seconds, time.monotonic()
    if first >= chunks:
        return result
    progress(result.vectors)
    with ThreadPoolExecutor(1) as executor:
        coming = executor.submit(prepare, size(first), seed + first)
        for number in range(first, chunks):
            work, count, chunk_seed = coming.result(), size(number), seed + number
            last = number + 1 == chunks or (seconds is not None and time.monotonic() - began >= seconds)
            if not last:
                coming = executor.submit(prepare, size(number + 1), chunk_seed + 1)
            try:
                run = execute(work, chunk_seed)
            except BenchFailure as failure:
                coming.cancel()
                return dataclasses.replace(
                    result,
                    seconds=before + time.monotonic() - began,
                    failure=str(failure),
                    failed_seed=chunk_seed,
                    failed_vectors=count,
                )
            result = dataclasses.replace(
                result,
                vectors=result.vectors + count,
                results=result.results + run.results,
                cycles=result.cycles + run.total_cycles,
                seconds=before + time.monotonic() - began,
            )
            if kept is not None and count == chunk:
                with atomic_write(kept) as output:
                    json.dump(dataclasses.asdict(result), output)
            progress(count)
            if last:
                break
    return result
