"""All streams of a circuit in two words: a simulator reads one and writes one per clock edge."""

from collections.abc import Mapping

from amaranth.hdl import Cat, ClockDomain, Module, ResetInserter, Shape, ShapeLike, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hdl import CircuitError
from hdl.parts.payload import payload_shape

from .streams import Port


def stream_ports(component: wiring.Component) -> tuple[dict[str, ShapeLike], dict[str, ShapeLike]]:
    """Return the payload shapes of a component's stream inputs and outputs.

    Raises:
        CircuitError: A port is a stream that a bench cannot drive.
    """
    inputs: dict[str, ShapeLike] = {}
    outputs: dict[str, ShapeLike] = {}
    for name, member in component.signature.members.items():
        if member.is_signature and not member.dimensions:
            signature = getattr(component, name).signature
            plain = signature.flip() if member.flow == In else signature
            if isinstance(plain, stream.Signature):
                if plain.always_valid if member.flow == In else plain.always_ready:
                    raise CircuitError(f"port {name} forbids stalls; a bench needs a stream with both valid and ready")
                (inputs if member.flow == In else outputs)[name] = payload_shape(getattr(component, name))
                continue
        if member.is_signature or member.dimensions or member.flow != In:
            raise CircuitError(f"port {name} is neither a stream nor a constant input; a bench cannot watch it")
    return inputs, outputs


class Harness(wiring.Component):
    """A component with all of its streams in two words.

    Args:
        component: With streams, and constants as its other inputs.
        constants: The value of each of these.
        one_reset: Only `inputs` resets, and a cycle later: a register in between. Then no logic of
            a register's reset depends on an input, which Verilator would evaluate at every change
            of one, the clock's too. The clock is a port of the signature.

    Attributes:
        sources: Where each stream input lies, in the order of the component's signature.
        sinks: Where each stream output lies.
        inputs: In, from bit 0: reset, each source's valid, each sink's ready, each source's
            payload.
        outputs: Out, from bit 0: each source's ready, each sink's valid, each sink's payload.
    """

    def __init__(
        self, component: wiring.Component, constants: Mapping[str, int] | None = None, *, one_reset: bool = False
    ):
        constants = dict(constants or {})
        source_shapes, sink_shapes = stream_ports(component)
        plain = set(component.signature.members.keys()) - set(source_shapes) - set(sink_shapes)
        if plain != set(constants):
            raise CircuitError(f"constants given for {sorted(constants)}, but the plain inputs are {sorted(plain)}")
        self.component = component
        self.constants = constants
        flags = len(source_shapes) + len(sink_shapes)
        self.sources, offset = [], 1 + flags
        for place, (name, shape) in enumerate(source_shapes.items()):
            width = Shape.cast(shape).width
            self.sources.append(Port(name, width, flag_out=1 + place, flag_in=place, offset=offset))
            offset += width
        input_bits = offset
        self.sinks, offset = [], flags
        for place, (name, shape) in enumerate(sink_shapes.items(), start=len(source_shapes)):
            width = Shape.cast(shape).width
            self.sinks.append(Port(name, width, flag_out=1 + place, flag_in=place, offset=offset))
            offset += width
        self.one_reset = one_reset
        clock = {"clk": In(1)} if one_reset else {}
        super().__init__({**clock, "inputs": In(input_bits), "outputs": Out(offset)})

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        asked, reset = Signal(), Signal(reset_less=True)
        m.submodules.component = ResetInserter({"sync": reset})(self.component)
        if self.one_reset:
            m.domains.sync = domain = ClockDomain(reset_less=True)
            m.d.comb += domain.clk.eq(self.clk)
            m.d.sync += reset.eq(asked)
        else:
            m.d.comb += reset.eq(asked)
        # A component without registers has no clock; a bench needs one.
        clocked = Signal()
        m.d.sync += clocked.eq(~clocked)
        sources = [getattr(self.component, port.name) for port in self.sources]
        sinks = [getattr(self.component, port.name) for port in self.sinks]
        written = [asked, *(port.valid for port in sources), *(port.ready for port in sinks)]
        written += [Value.cast(port.payload) for port in sources]
        read = [*(port.ready for port in sources), *(port.valid for port in sinks)]
        read += [Value.cast(port.payload) for port in sinks]
        m.d.comb += [Cat(*written).eq(self.inputs), self.outputs.eq(Cat(*read))]
        m.d.comb += [Value.cast(getattr(self.component, name)).eq(value) for name, value in self.constants.items()]
        return m
