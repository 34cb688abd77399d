"""What a circuit shows of its inside to proofs."""

from types import SimpleNamespace
from typing import Never


class Internals(SimpleNamespace):
    """Signals and parts of a circuit by name. Its `elaborate` sets them as `internals`; only the
    invariants of proofs read them, so a name that is wrong fails there or in the circuit itself.
    """

    def __getattr__(self, name: str) -> Never:
        """Refuse a name that the circuit has not declared."""
        raise AttributeError(f"the circuit declares no internal {name!r}; it declares {', '.join(vars(self))}")
