"""Reading a pickle as data: nothing in it is called, imported or built.

`pickletools` takes the stream apart; a small stack machine puts together what plain values need:
None, numbers, text, bytes, lists, tuples and dictionaries. Names and calls are handed to the
reader, which knows the few that weights are made of; everything else is refused.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from typing import Any

from ..errors import InputError

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
CONTAINERS: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
BYTES = ("BINBYTES", "SHORT_BINBYTES")
WRITES, READS = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET")
IGNORED = ("PROTO", "FRAME")
MARK = object()
# What a damaged stream does to the machine.
DAMAGE = (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, UnicodeError, MemoryError)


def refuse_names(name: str) -> Callable[..., Any]:
    """Refuse a name: plain values need none."""
    raise InputError(f"it asks for {name}, which plain values do not need")


def refuse_records(key: Any) -> Any:
    """Refuse a record outside the pickle."""
    raise InputError("it asks for a record outside itself")


def read_pickle(
    data: bytes,
    where: str,
    find: Callable[[str], Callable[..., Any]] = refuse_names,
    record: Callable[[Any], Any] = refuse_records,
) -> Any:
    """Return the value in a pickle.

    Args:
        data: The stream.
        where: What to call it in a message.
        find: Given `module name`, returns what makes the value that a call of it stands for, or
            raises InputError.
        record: Given a persistent identifier, returns what it stands for, or raises InputError.

    Raises:
        InputError: The stream is damaged, or asks for anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in damaged names
            return _run(data, find, record)
    except InputError as error:
        raise InputError(f"{where} is not read: {error}") from None
    except DAMAGE as error:
        raise InputError(f"{where} is not a whole pickle ({type(error).__name__}: {str(error)[:100]})") from None


def _run(data: bytes, find: Callable[[str], Callable[..., Any]], record: Callable[[Any], Any]) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        place = max(index for index, value in enumerate(stack) if value is MARK)
        values = stack[place + 1 :]
        del stack[place:]
        return values

    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in VALUES or name in BYTES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in CONTAINERS:
            stack.append(CONTAINERS[name]())
        elif name == "MARK":
            stack.append(MARK)
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in WRITES:
            memo[int(argument)] = stack[-1]  # type: ignore[arg-type]
        elif name in READS:
            stack.append(memo[int(argument)])  # type: ignore[arg-type]
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("APPEND", "APPENDS"):
            values = [stack.pop()] if name == "APPEND" else since_mark()
            stack[-1].extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = [stack.pop(-2), stack.pop()] if name == "SETITEM" else since_mark()
            stack[-1].update(zip(values[::2], values[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(find(str(argument)[:100]))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [find(f"{stack[-2]} {stack[-1]}"[:100])]
        elif name == "BINPERSID":
            stack.append(record(stack.pop()))
        elif name == "REDUCE":
            arguments, maker = stack.pop(), stack.pop()
            stack.append(maker(*arguments))
        elif name == "BUILD":
            stack.pop()  # attributes of a dictionary, which weights do not need
            if not isinstance(stack[-1], dict):
                raise InputError("it gives attributes to something else than a dictionary")
        elif name == "STOP":
            (value,) = stack
            return value
        elif name not in IGNORED:
            raise InputError(f"it holds the operation {name}, which plain values do not need")
    raise ValueError("no end")
