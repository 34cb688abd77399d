"""Campaigns of the whole decoder: the compiled machine against the integer model, token by token.

A vector is a sequence of a full context: a prompt of random length, then the model's own tokens.
As in `campaign`, chunk k takes everything from seed + k: one that failed is repeated alone.
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fixedpoint import Sampler
from fixedpoint.fast.transformer import FastDecoder
from hdl.decoder.machine import Machine
from hdl.decoder.score_rows import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE, Temperature

from .bench.bench import BenchFailure
from .campaign import CampaignResult, run_chunks
from .simulators.decoder_process import FIELDS, compare_records
from .simulators.native_bench import NativeResult

CHUNK = 4  # sequences
# Columns of a record behind the token's fields, in the order of `native/decoder.cpp`.
PLACES = (*FIELDS, "source_pause", "sink_pause", "reset_after", "next", "cycles")
RECORD = np.dtype([(name, "<u4") for name in PLACES])
# The same for a pair of tokens.
TURN = np.dtype([(name, "<u4") for name in FIELDS])
ENDS = [(name, "<u4") for name in PLACES[len(FIELDS) : -2]]
PAIR_RECORD = np.dtype([("turns", TURN, 2), *ENDS, ("next", "<u4", 2), ("cycles", "<u4")])
LONGEST_PAUSE = 4095
# Shares: of sequences that another one is broken off before, of those by a reset, of pauses
# of one end.
BROKEN, RESET, PAUSED = 0.5, 0.4, 0.6
TOGETHER = 0.7  # share of runs in which neither of two sequences sits out


def sequence_records(machine: Machine, count: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """Return the tokens of `count` whole sequences with the expected answers, (count, T) of
    `RECORD`, without pauses.

    With a machine that samples, half of the sequences are sampled, each at a temperature of its
    own.
    """
    model, length = machine.plan.model, machine.plan.context_length
    generator = np.random.default_rng(seed)
    records = np.zeros((count, length), RECORD)
    tokens = generator.integers(0, model.vocab_size, (count, length))
    prompt = generator.integers(1, length + 1, count)
    samplers: dict[int, Sampler] = {}
    if machine.plan.sampling:
        for number in np.flatnonzero(generator.integers(2, size=count)).tolist():
            heat = float(2 ** generator.uniform(np.log2(LOWEST_TEMPERATURE), np.log2(HIGHEST_TEMPERATURE)))
            samplers[number] = Sampler(model.logits.output, heat)
            scale = Temperature.of(model.logits.output, heat)
            for name, value in (("sample", 1), ("multiplier", scale.multiplier), ("amount", scale.amount)):
                records[name][number] = value
        records["random"] = generator.integers(1, 1 << 32, (count, length), dtype=np.uint32)
    decoder = FastDecoder(model, count)
    for position in range(length):
        logits = decoder.step(tokens[:, position]) if position else decoder.prefill(tokens[:, :1])
        chosen = logits.argmax(axis=-1)
        for place, sampler in samplers.items():
            row, random = logits[place : place + 1].astype(np.int64), records["random"][place, position]
            chosen[place] = sampler.choose(row, random[None])[0]
        records["next"][:, position] = chosen
        if position + 1 < length:
            own = prompt <= position + 1
            tokens[own, position + 1] = chosen[own]
    records["token"] = tokens
    records["cycles"] = [machine.cycles(position) for position in range(length)]
    return records


def make_records(machine: Machine, count: int, seed: int) -> np.ndarray:
    """Return what a compiled machine is given and must answer, (N,) of `RECORD`.

    Before half of the sequences another one is broken off, by a restart or by a reset within a
    token. Where nothing but a full context, or a reset, came before, some sequences begin without
    `restart`. Pauses of both ends are short mostly, but of up to 4,095 cycles; every fourth seed
    has none.
    """
    whole = sequence_records(machine, count, seed)
    generator = np.random.default_rng((seed, count))
    parts, fresh = [], True
    for number in range(count):
        pieces = [whole[number].copy()]
        if generator.random() < BROKEN:
            broken = whole[(number + 1) % count][: generator.integers(1, whole.shape[1] + 1)].copy()
            if generator.random() < RESET:
                broken["reset_after"][-1] = generator.integers(1, broken["cycles"][-1] + 20)
            pieces.insert(0, broken)
        for piece in pieces:
            piece["restart"][0] = not fresh or generator.integers(2)
            fresh = len(piece) == whole.shape[1] or bool(piece["reset_after"][-1])
            parts.append(piece)
    records = np.concatenate(parts)
    _pause(records, generator, seed)
    return records


def make_pair_records(machine: Machine, count: int, seed: int) -> np.ndarray:
    """Return what a compiled machine of two sequences is given and must answer, (N,) of
    `PAIR_RECORD`: `count` whole sequences or one more, half of them in each.

    As `make_records`, but the sequences are independent: each is broken off by a restart when it
    likes, and now and then sits out. A reset ends both, after each half of the sequences.
    """
    generator = np.random.default_rng((seed, count))
    whole = [sequence_records(machine, -(-count // 2), (seed, number)) for number in (0, 1)]
    records: list[np.ndarray] = []
    for half in np.array_split(np.arange(len(whole[0])), 2):
        left: list[list[tuple[int, np.void]]] = [[], []]
        for row, texts in zip(left, whole, strict=True):
            for number in half:
                pieces = [texts[number].copy()]
                if generator.random() < BROKEN:
                    pieces.insert(0, texts[number - 1][: generator.integers(1, texts.shape[1])].copy())
                for place, piece in enumerate(pieces):
                    # it begins by itself after a full context, or a reset
                    piece["restart"][0] = place or generator.integers(2)
                    row.extend(enumerate(piece))
        while any(left):
            sits_out = int(generator.integers(2)) if generator.random() > TOGETHER else None
            active = [bool(left[number]) and (number != sits_out or not left[1 - number]) for number in (0, 1)]
            record = np.zeros((), PAIR_RECORD)
            positions: list[int | None] = [None, None]
            for number in (0, 1):
                turn = record["turns"][number]
                if not active[number]:
                    turn["token"], turn["restart"] = generator.integers(machine.plan.model.vocab_size), 1
                    continue
                positions[number], one = left[number].pop(0)
                for name in FIELDS[1:]:
                    turn[name] = one[name]
                turn["active"], record["next"][number] = 1, one["next"]
            record["cycles"] = machine.cycles(positions)
            records.append(record)
        ended = records[-1].copy()
        ended["reset_after"] = generator.integers(1, ended["cycles"] + 20)
        records.append(ended)
    pairs = np.stack(records)
    _pause(pairs, generator, seed)
    return pairs


def _pause(records: np.ndarray, generator: np.random.Generator, seed: int) -> None:
    """Let both ends pause, but with every fourth seed."""
    if seed % 4:
        for end in ("source_pause", "sink_pause"):
            tail = 2 * generator.pareto(1.0, len(records))
            pauses = np.where(generator.random(len(records)) < PAUSED, np.minimum(tail, LONGEST_PAUSE), 0)
            records[end] = pauses.astype(np.uint32)


def run_decoder_campaign(
    name: str,
    machine: Machine,
    sequences: int,
    seed: int,
    bench: Path,
    *,
    seconds: float | None = None,
    chunk: int = CHUNK,
    progress: Callable[[int], None] = lambda count: None,
) -> CampaignResult:
    """Run a machine on whole sequences until all are done, one is wrong, or time is up.

    Each chunk's result is kept beside the compiled machine, so that a campaign of the same seed
    goes on where it was ended.

    Args:
        name: For messages.
        machine: The machine.
        sequences: How many, each of a full context.
        seed: Of the first chunk; chunk k has `seed + k`.
        bench: What `compile_decoder` made of it.
        seconds: No chunk begins after so many seconds; None: no limit.
        chunk: Sequences in a chunk, the last one's rest left out.
        progress: Called with the number of sequences done after each chunk.

    Raises:
        CircuitError: No sequences, or a seed that is negative or too large.
        ToolError: A tool is missing or failed.
    """
    kept = bench.with_name(f"{name}-{seed}-{chunk}.json")

    def execute(records: np.ndarray, seed: int) -> NativeResult:
        with tempfile.TemporaryDirectory(prefix="positron-campaign-") as made:
            path = Path(made) / "records"
            path.write_bytes(records.tobytes())
            kind, numbers = compare_records(bench, path)
        if kind == "done":
            answered = records[records["reset_after"] == 0]
            tokens = len(answered) if machine.plan.sequences == 1 else int(answered["turns"]["active"].sum())
            return NativeResult(tokens, numbers[0], numbers[0])
        place, got, expected = numbers
        message = f"token {place} of {len(records)}, {records[place]}: {kind}, got {got}, expected {expected}"
        raise BenchFailure(kind, name, message, "o", place, expected, got)

    prepare = functools.partial(make_records if machine.plan.sequences == 1 else make_pair_records, machine)
    return run_chunks(name, sequences, seed, chunk, prepare, execute, seconds=seconds, progress=progress, kept=kept)
