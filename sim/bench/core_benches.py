"""Benches of the registry's cores: vectors and the specification's results, as words."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from fixedpoint import QuantizedTransformer
from hdl import CircuitError
from hdl.catalog.activations import Activations
from hdl.catalog.names import RUN_CORES
from hdl.catalog.registry import CORES, CoreEntry, run_core
from hdl.catalog.vectors import Columns, Vectors
from hdl.parts.payload import connect

from .bench import StreamBench
from .payload import pack_all


class Wired(wiring.Component):
    """A core whose plain outputs are connected to plain inputs, so that only streams and constant
    inputs are left; other plain outputs are left out.

    Attributes:
        core: The core inside.
        wires: Plain input → plain output.
    """

    def __init__(self, core: wiring.Component, wires: Mapping[str, str]):
        self.core, self.wires = core, dict(wires)
        members = core.signature.members
        plain = {name for name in members if not members[name].is_signature}
        outputs = {name for name in plain if members[name].flow != In}
        for target, source in wires.items():
            if target not in plain - outputs or source not in outputs:
                raise CircuitError(f"a wire leads from a plain output to a plain input, not from {source} to {target}")
        hidden = outputs | set(wires)
        super().__init__({name: member for name, member in members.items() if name not in hidden})

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        m.submodules.core = self.core
        for name, member in self.signature.members.items():
            inner, outer = getattr(self.core, name), getattr(self, name)
            if member.is_signature:
                connect(m, wiring.flipped(outer), inner)
            else:
                m.d.comb += inner.eq(outer)
        m.d.comb += [getattr(self.core, target).eq(getattr(self.core, source)) for target, source in self.wires.items()]
        return m


def wired(entry: CoreEntry, core: wiring.Component) -> wiring.Component:
    """Return an entry's component with its wires; the component itself if it has only streams."""
    plain = any(not member.is_signature for member in core.signature.members.values())
    return Wired(core, entry.wires) if plain else core


@dataclass(frozen=True)
class CoreWords:
    """Stimuli and golden results of a core as raw words.

    Attributes:
        inputs: For each stream input, its words, as `pack_all` or `pack_words` returns them.
        outputs: For each stream output, all words that must come.
        cycles: As `hdl.catalog.vectors.Vectors`'s.
    """

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    cycles: int | None


def pack_vectors(core: wiring.Component, vectors: Vectors, pack: Callable = pack_all) -> CoreWords:
    """Return a core's vectors as words; `pack` is `pack_all` or `pack_words`."""

    def words(columns: Mapping[str, Columns]) -> dict[str, Any]:
        return {port: pack(getattr(core, port).payload.shape(), values) for port, values in columns.items()}

    return CoreWords(words(vectors.inputs), words(vectors.outputs), vectors.cycles)


def core_words(entry: CoreEntry, core: wiring.Component, count: int, seed: int, pack: Callable = pack_all) -> CoreWords:
    """Return random vectors of a registered core.

    Args:
        entry: The core's entry.
        core: A component that the entry built.
        count: Rows, tokens or values, as fits the core.
        seed: Of the random ones among them.
        pack: As for `pack_vectors`.

    Raises:
        CircuitError: `count` is not positive.
    """
    if count < 1:
        raise CircuitError(f"a bench of {entry.name} needs at least one vector, not {count}")
    return pack_vectors(core, entry.vectors(core, np.random.default_rng(seed), count), pack)


def words_bench(entry: CoreEntry, core: wiring.Component, words: CoreWords) -> StreamBench:
    """Return the bench of a fresh component that an entry built, since it is elaborated once."""
    return StreamBench(
        entry.name,
        wired(entry, core),
        words.inputs,
        words.outputs,
        constants=entry.constants,
        expected_cycles=words.cycles,
    )


def core_bench(entry: CoreEntry, core: wiring.Component, count: int, seed: int) -> StreamBench:
    """Return a bench of random vectors; arguments as for `core_words`, the component fresh."""
    return words_bench(entry, core, core_words(entry, core, count, seed))


def run_benches(
    model: QuantizedTransformer, tokens: np.ndarray, *, num_vectors: int, seed: int, only: Collection[str] = ()
) -> list[StreamBench]:
    """Return benches of the cores of a model's first block, fed with what its text makes of them.

    Args:
        model: The quantized model.
        tokens: Text (n,) that the vectors are made from, at least one context long.
        num_vectors: Input vectors of each core (rows of scores for softmax).
        seed: Of the windows drawn from the text, and of the rows of scores.
        only: Names of `hdl.catalog.names.RUN_CORES`; empty for all.

    Raises:
        CircuitError: The text is too short, there is no such core, or one cannot be built.
    """
    wanted = {run_core(name, model).name for name in only or RUN_CORES}
    seen = Activations(model, tokens, num_vectors, np.random.default_rng(seed), 0)
    benches = []
    for entry in CORES.values():
        if entry.name in wanted:
            core = entry.for_model(model)
            assert entry.activations is not None, entry.name
            benches.append(words_bench(entry, core, pack_vectors(core, entry.activations(core, seen))))
    return benches
