"""Benches of the registry's cores: random vectors and the specification's answers, as words."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from hdl import CircuitError
from hdl.catalog.registry import CoreEntry
from hdl.parts.payload import connect

from .bench import StreamBench
from .payload import pack_all


class Wired(wiring.Component):
    """A core whose plain ports lead to each other, so that only streams and constant inputs are
    left.

    Plain outputs that lead nowhere are left out.

    Attributes:
        core: The core inside.
        parameters: The core's, where it has any.
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

    def elaborate(self, platform):
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
    """Return a component that an entry built with the entry's wires; the component itself where it
    has only streams.
    """
    plain = any(not member.is_signature for member in core.signature.members.values())
    return Wired(core, entry.wires) if plain else core


@dataclass(frozen=True)
class CoreWords:
    """Stimuli and golden results of a core as raw words.

    Attributes:
        inputs: For each stream input, its words.
        outputs: For each stream output, all words that must come.
        cycles: As `hdl.catalog.vectors.Vectors`'s.
    """

    inputs: dict[str, list[int]]
    outputs: dict[str, list[int]]
    cycles: int | None


def core_words(entry: CoreEntry, core: wiring.Component, count: int, seed: int) -> CoreWords:
    """Return random vectors of a registered core.

    Args:
        entry: The core's entry.
        core: A component that the entry built.
        count: Rows, tokens or values, as fits the core.
        seed: Of the random ones among them.

    Raises:
        CircuitError: `count` is not positive.
    """
    if count < 1:
        raise CircuitError(f"a bench of {entry.name} needs at least one vector, not {count}")
    vectors = entry.vectors(core, np.random.default_rng(seed), count)

    def words(columns: Mapping[str, object]) -> dict[str, list[int]]:
        return {port: pack_all(getattr(core, port).payload.shape(), values) for port, values in columns.items()}

    return CoreWords(words(vectors.inputs), words(vectors.outputs), vectors.cycles)


def core_bench(entry: CoreEntry, core: wiring.Component, count: int, seed: int) -> StreamBench:
    """Return a bench of a registered core; arguments as for `core_words`, the component fresh,
    since it is elaborated once.
    """
    words = core_words(entry, core, count, seed)
    return StreamBench(
        entry.name,
        wired(entry, core),
        words.inputs,
        words.outputs,
        constants=entry.constants,
        expected_cycles=words.cycles,
    )
