# amaranth: UnusedElaboratable=no
import ast
import re
from pathlib import Path

import pytest
from amaranth.hdl import Cat, Const, Module, Shape, Signal, signed, unsigned
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from fixedpoint import QFormat
from hdl import CircuitError
from hdl.board.boards import BOARDS, BoardTop, SerialAccelerator
from hdl.board.link import HostLink, Identity
from hdl.catalog.example_model import SMALL, example_model
from hdl.catalog.registry import CORES
from hdl.cores.activation import TableActivation
from hdl.cores.engine import Operation
from hdl.cores.matrix_vector import MatrixVector
from hdl.cores.uart import UARTReceiver
from hdl.parts.arithmetic import shape_of
from hdl.parts.payload import FixedPointShape, check_connections, connect, describe, difference, payload_shape
from hdl.parts.stream_parts import StreamRegister, WidthConverter
from hdl.tools.synthesis import synthesize, synthesize_core
from hdl.tools.verilog import interface_text, to_plain_verilog

ROOT = Path(__file__).parents[3]
Q44, Q17, UQ44 = (shape_of(QFormat.parse(text)) for text in ("Q4.4", "Q1.7", "UQ4.4"))


class Color(enum.Enum, shape=2):
    RED = 0
    GREEN = 1


class Mode(enum.Enum, shape=2):
    SLOW = 0
    FAST = 1


class Pixel(data.Struct):
    data: 8
    last: 1


class Half(wiring.Component):
    """One end of a stream, and nothing behind it."""

    def __init__(self, direction, shape):
        super().__init__({"port": direction(stream.Signature(shape))})

    def elaborate(self, platform):
        return Module()


def struct(**members):
    return data.StructLayout(members)


def test_a_number_is_a_plain_value():
    for shape, plain in ((Q44, signed(8)), (UQ44, unsigned(8))):
        number = Signal(shape)
        assert type(number) is Signal
        assert Shape.cast(shape) == number.shape() == plain
        field = Signal(struct(pad=3, number=shape)).number
        assert field.shape() == plain
        assert Signal(data.ArrayLayout(shape, 2))[1].shape() == plain
        assert shape(Cat(Signal(4), Signal(4))).shape() == plain
    assert shape_of(QFormat(8, 4))(Const(-3, 8)).shape() == signed(8)
    with pytest.raises(CircuitError, match=r"a value of 7 bits is no number of Q4\.4"):
        Q44(Signal(7))


def test_constants_lie_in_the_format():
    assert Q44.const(-128).value == -128
    assert Q44.const(None).value == 0
    assert UQ44.const(Const(255, 8)).value == 255
    for raw in range(256):
        assert Q44.const(Q44.from_bits(raw)).value & 255 == raw
        assert UQ44.from_bits(raw) == raw
    for shape, value, name in ((Q44, 128, "Q4.4"), (Q44, -129, "Q4.4"), (UQ44, -1, "UQ4.4"), (UQ44, 256, "UQ4.4")):
        with pytest.raises(CircuitError, match=re.escape(f"{value} does not fit {name}")):
            shape.const(value)
    with pytest.raises(TypeError, match="'float' object cannot be interpreted as an integer"):
        Q44.const(0.5)
    with pytest.raises(TypeError, match=r"number_format must be a fixedpoint\.QFormat, not int"):
        FixedPointShape(8)
    assert Memory(shape=Q44, depth=2, init=[-128, 127]).data.init[0] == -128


def test_the_simulator_shows_integers():
    word = Signal(struct(many=data.ArrayLayout(Q44, 2), one=UQ44))
    number = Signal(Q17)

    async def bench(context):
        context.set(word, {"many": [-128, 5], "one": 200})
        context.set(number, -7)
        await context.delay(1e-9)
        got = context.get(word)
        assert [*got.many, got.one, context.get(number)] == [-128, 5, 200, -7]

    m = Module()
    m.d.comb += Signal(8).eq(word.one)
    simulator = Simulator(m)
    simulator.add_testbench(bench)
    simulator.run()


def test_formats_are_compared():
    shape = shape_of(QFormat(8, 4))
    assert shape == Q44
    assert shape not in (Q17, UQ44, signed(8))
    assert len({shape, Q44, Q17, UQ44}) == 3
    assert repr(Q44) == "FixedPointShape(Q4.4)"


SAME = (
    (Q44, shape_of(QFormat(8, 4))),
    (struct(data=Q44, last=1), struct(data=shape_of(QFormat(8, 4)), last=unsigned(1))),
    (range(10), unsigned(4)),  # whole numbers
    (Pixel, struct(data=8, last=1)),
    (Color, Color),
    (data.ArrayLayout(Q44, 3), data.ArrayLayout(Q44, 3)),
    (data.UnionLayout({"a": Q44, "b": 3}), data.UnionLayout({"a": Q44, "b": 3})),
)
DIFFERENT = {
    "a format": (Q44, Q17, "Q4.4 against Q1.7"),
    "a sign": (Q44, UQ44, "Q4.4 against UQ4.4"),
    "a plain sign": (signed(8), unsigned(8), "signed(8) against unsigned(8)"),
    "a format and none": (Q44, signed(8), "Q4.4 against signed(8)"),
    "a field's format": (struct(data=Q44, last=1), struct(data=Q17, last=1), "data: Q4.4 against Q1.7"),
    "a field's name": (struct(score=Q44), struct(data=Q44), "{score: Q4.4} against {data: Q4.4}"),
    "the order of fields": (
        struct(a=Q44, b=Q44),
        struct(b=Q44, a=Q44),
        "{a: Q4.4, b: Q4.4} against {b: Q4.4, a: Q4.4}",
    ),
    "an array's length": (data.ArrayLayout(4, 4), data.ArrayLayout(8, 2), "4 × unsigned(4) against 2 × unsigned(8)"),
    "deep inside": (
        struct(rows=data.ArrayLayout(struct(data=Q44, last=1), 2)),
        struct(rows=data.ArrayLayout(struct(data=Q17, last=1), 2)),
        "rows[0].data: Q4.4 against Q1.7",
    ),
    "a struct and a number": (struct(data=Q44), Q44, "{data: Q4.4} against Q4.4"),
    "an array and a struct": (data.ArrayLayout(8, 1), data.StructLayout({"data": 8}), "1 × unsigned(8) against {data"),
    "enumerations": (Color, Mode, "Color against Mode"),
    "an enumeration and a number": (struct(kind=Color), struct(kind=2), "kind: Color against unsigned(2)"),
    "a union and a struct": (data.UnionLayout({"a": 8}), struct(a=8), "{a: unsigned(8)} against {a: unsigned(8)}"),
    "places": (
        data.FlexibleLayout(9, {"a": data.Field(4, 0)}),
        data.FlexibleLayout(9, {"a": data.Field(4, 5)}),
        "a: from bit 0 against from bit 5",
    ),
}


@pytest.mark.parametrize("one, other", SAME)
def test_equal_shapes_have_no_difference(one, other):
    assert difference(one, other) is None


@pytest.mark.parametrize("one, other, where", DIFFERENT.values(), ids=DIFFERENT)
def test_the_first_difference_is_named(one, other, where):
    assert where in difference(one, other)
    assert difference(other, one) is not None


# What Amaranth's own `connect` lets pass, since widths agree.
UNNOTICED = {
    name: pair for name, (*pair, _) in DIFFERENT.items() if Shape.cast(pair[0]).width == Shape.cast(pair[1]).width
}


@pytest.mark.parametrize("one, other", UNNOTICED.values(), ids=UNNOTICED)
def test_streams_of_different_payloads_are_not_connected(one, other):
    m = Module()
    m.submodules.producer, m.submodules.consumer = producer, consumer = Half(Out, one), Half(In, other)
    with pytest.raises(
        CircuitError, match=r"cannot connect port__payload \(.*\) with port__payload \(.*\); they differ in "
    ):
        connect(m, producer.port, consumer.port)
    wiring.connect(m, producer.port, consumer.port)
    found = r"cannot connect Half\.port\.payload \(.*\) with Half\.port\.payload \(.*\); they differ in "
    with pytest.raises(CircuitError, match=found):
        check_connections(m)


def test_equal_streams_are_connected():
    m = Module()
    payload = struct(data=data.ArrayLayout(Q44, 2), last=1)
    m.submodules.producer, m.submodules.consumer = producer, consumer = StreamRegister(payload), StreamRegister(payload)
    connect(m, producer.o, consumer.i)
    m.d.comb += [producer.i.valid.eq(1), consumer.o.ready.eq(1)]
    m.d.comb += [producer.i.payload.data[0].eq(-5), producer.i.payload.last.eq(1)]
    got = []

    async def bench(context):
        async for _, reset, valid, value in context.tick().sample(consumer.o.valid, consumer.o.payload):
            if valid and not reset:
                got.append(([*value.data], value.last))
                break

    simulator = Simulator(check_connections(m))
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert got == [([-5, 0], 1)]


def test_all_ports_of_an_interface_are_compared():
    def interface(name, shape):
        signature = wiring.Signature({"en": Out(1), "words": Out(stream.Signature(Q44)), "rows": Out(shape).array(2)})
        return signature.create(path=(name,))

    with pytest.raises(CircuitError, match=r"cannot connect one__rows__0 \(Q4\.4\) with other__rows__0 \(Q1\.7\)"):
        connect(Module(), source=interface("one", Q44), sink=wiring.flipped(interface("other", Q17)))
    connect(Module(), source=interface("one", Q44), sink=wiring.flipped(interface("other", Q44)))


def test_what_amaranth_refuses_stays_refused():
    producer, consumer = StreamRegister(8), StreamRegister(8)
    with pytest.raises(wiring.ConnectionError, match="several output members"):
        connect(Module(), producer.o, consumer.o)
    with pytest.raises(wiring.ConnectionError, match="is present in"):
        connect(Module(), producer.o, UARTReceiver(4))
    with pytest.raises(AttributeError, match="must have a 'signature' attribute"):
        connect(Module(), producer.o, 3)
    connect(Module())


class Copying(wiring.Component):
    """Hands a payload on under a condition, in one assignment."""

    def __init__(self, shape_in, shape_out):
        super().__init__({"i": In(stream.Signature(shape_in)), "o": Out(stream.Signature(shape_out))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = inner = StreamRegister(payload_shape(self.o))
        with m.If(self.i.valid), m.Switch(self.i.ready), m.Case(1):
            m.d.sync += inner.i.payload.eq(self.i.payload)
        return m


def test_copies_of_whole_payloads_are_found():
    check_connections(Copying(struct(data=Q44), struct(data=Q44)))
    with pytest.raises(CircuitError, match=r"Copying\.i\.payload \(\{data: Q4\.4\}\) with StreamRegister\.i\.payload"):
        check_connections(Copying(struct(data=Q44), struct(data=Q17)))


class Number(wiring.Component):
    """A port that is no stream, and another one inside that it is assigned to."""

    def __init__(self, shape, inner=None):
        self._inner = inner
        super().__init__({"number": In(shape)})

    def elaborate(self, platform):
        m = Module()
        if self._inner is not None:
            m.submodules.inner = self._inner
            m.d.comb += self._inner.number.eq(self.number)
        return m


def test_whole_numbers_may_be_assigned_to_each_other():
    check_connections(Number(4, Number(signed(8))))
    check_connections(Number(Q44, Number(Q44)))
    for one, other in ((Q44, Q17), (Q44, signed(8)), (8, UQ44)):
        with pytest.raises(CircuitError, match=r"cannot connect Number\.number \(.*\) with Number\.number"):
            check_connections(Number(one, Number(other)))


def test_designs_with_mixed_formats_are_neither_synthesized_nor_exported(tmp_path):
    mixed = Copying(struct(data=Q44), struct(data=Q17))
    for make in (
        lambda: synthesize_core(mixed, tmp_path / "core", progress=False),
        lambda: synthesize(mixed, BOARDS["ulx3s-85f"], tmp_path / "board", progress=False),
        lambda: to_plain_verilog(mixed, "mixed"),
    ):
        with pytest.raises(CircuitError, match=r"they differ in data: Q4\.4 against Q1\.7"):
            make()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", CORES)
def test_no_core_joins_different_formats(name):
    check_connections(CORES[name].example())


def test_the_board_joins_no_different_formats():
    core, board = CORES["attention"].example(), BOARDS["ulx3s-85f"]
    identity = Identity(core.parameters.embed_dim, 1, bytes(8))
    accelerator = SerialAccelerator(core, identity, 25e6)
    assert str(payload_shape(core.i)["data"].shape.number_format) in describe(payload_shape(accelerator._link.o_token))
    check_connections(BoardTop(core, identity, board), board.platform())
    with pytest.raises(CircuitError, match=r"the link's element must be a signed number of 8 bits, not UQ4\.4"):
        HostLink(identity, UQ44)
    with pytest.raises(CircuitError, match=r"the link's result must be a signed number of 16 bits, not Q4\.4"):
        HostLink(identity, Q44, Q44)


def test_ports_of_cores_know_their_formats():
    softmax, exponential = CORES["softmax"].example(), CORES["exponential"].example()
    parameters = softmax.parameters
    assert describe(payload_shape(softmax.i)) == f"{{score: {parameters.score}, last: unsigned(1)}}"
    assert describe(payload_shape(softmax.o)) == f"{{probability: {parameters.probability}, last: unsigned(1)}}"
    assert payload_shape(exponential.i).number_format == QFormat(
        exponential.width, exponential.parameters.fraction, signed=False
    )
    converter = WidthConverter(Q44, 1, 4)
    assert describe(payload_shape(converter.o)) == "{data: 4 × Q4.4, last: unsigned(1)}"
    assert describe(struct(operation=Operation)) == "{operation: Operation}"


def test_a_models_layers_fit_together_and_others_do_not():
    block = example_model(SMALL).blocks[0]
    m = Module()
    m.submodules.up, m.submodules.activation = up, activation = (
        MatrixVector(block.up, 4),
        TableActivation(block.activation),
    )
    m.submodules.down = down = MatrixVector(block.down, 4)
    connect(m, up.o, activation.i)
    connect(m, activation.o, down.i)
    check_connections(m)
    with pytest.raises(CircuitError, match=rf"they differ in data: {block.down.output} against {block.up.input}"):
        connect(Module(), down.o, up.i)


def test_the_interface_page_shows_formats():
    for name in ("softmax", "exponential"):
        core = CORES[name].example()
        text = interface_text(name, core, [])
        for port in (core.i, core.o):
            for _, shape in getattr(payload_shape(port), "members", {"(whole)": payload_shape(port)}).items():
                if isinstance(shape, FixedPointShape):
                    sign = "signed" if shape.number_format.signed else "unsigned"
                    assert f"| {shape.number_format}, {sign}, {shape.number_format.bits} bits |" in text
    assert f"{core.width - 1}:0 | UQ" in text


def direct_connections(source: str) -> list[int]:
    """Return the lines of a module that reach for Amaranth's own `connect`."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Attribute) and node.attr == "connect" and ast.unparse(node.value).endswith("wiring"))
        or (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").endswith("wiring")
            and any(alias.name in ("connect", "*") for alias in node.names)
        )
    ]


@pytest.mark.parametrize(
    "path",
    sorted(p.relative_to(ROOT) for folder in ("hdl", "sim", "scripts") for p in (ROOT / folder).rglob("*.py")),
    ids=str,
)
def test_connections_compare_formats(path):
    lines = direct_connections((ROOT / path).read_text(encoding="utf-8"))
    assert len(lines) == (path.as_posix() == "hdl/parts/payload.py"), (
        f"{path}: lines {lines} call wiring.connect, not hdl.parts.payload.connect"
    )


def test_the_check_sees_what_it_should():
    assert direct_connections("wiring.connect(m, a, b)") == [1]
    assert direct_connections("x = 1\namaranth.lib.wiring.connect(m, a, b)") == [2]
    assert direct_connections("from amaranth.lib.wiring import In, connect") == [1]
    assert direct_connections("join = wiring.connect") == [1]
    assert not direct_connections("from .payload import connect\nconnect(m, a, b)\nhost.connect()")
