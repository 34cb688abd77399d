"""What a design takes on a board and how fast it runs there, as the tools have found it."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median

REPORT_FILE = "report.json"


@dataclass(frozen=True)
class Usage:
    """How much of one kind of resource a design takes."""

    used: int
    available: int


@dataclass(frozen=True)
class ClockTiming:
    """The speed of one clock.

    Attributes:
        name: The clock's net.
        achieved_mhz: Highest frequency after routing.
        required_mhz: What was asked for.
    """

    name: str
    achieved_mhz: float
    required_mhz: float

    @property
    def met(self) -> bool:
        """The design may run at the required frequency."""
        return self.achieved_mhz >= self.required_mhz


@dataclass(frozen=True)
class SynthesisReport:
    """What a design takes on a board and how fast it runs there.

    Attributes:
        design: Its name.
        board: The board's name.
        out_of_context: A core alone, without pins; there is no bitstream.
        luts: Four-input lookup tables, carry cells and distributed RAM included.
        carry_luts: Those of `luts` that are halves of carry cells.
        flip_flops, block_rams, multipliers: The others.
        clocks: Each clock's speed.
        seconds: Duration of each stage.
        bitstream: File name of the bitstream in the report's directory, None out of context.
        bitstream_sha256: Its SHA-256, None out of context.
        tools: Name → version.
        seed: nextpnr's.
        inputs_sha256: SHA-256 of the circuit, the constraints, the command lines and the tools'
            versions.
        baud: Bits per second of the board's serial port, None without one.
        seed_mhz: The slowest clock that each seed reached, where several were tried.
    """

    design: str
    board: str
    out_of_context: bool
    luts: Usage
    carry_luts: int
    flip_flops: Usage
    block_rams: Usage
    multipliers: Usage
    clocks: tuple[ClockTiming, ...]
    seconds: dict[str, float]
    bitstream: str | None
    bitstream_sha256: str | None
    tools: dict[str, str]
    seed: int
    inputs_sha256: str
    baud: int | None = None
    seed_mhz: dict[str, float] | None = None

    @property
    def slowest_mhz(self) -> float:
        """What the clock with the least slack reaches."""
        return min(self.clocks, key=lambda clock: clock.achieved_mhz / clock.required_mhz).achieved_mhz

    @property
    def timing_met(self) -> bool:
        """Every clock is as fast as required."""
        return all(clock.met for clock in self.clocks)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return (resource, used, available, share) rows for a table."""
        rows = []
        for name, usage in (
            ("LUTs", self.luts),
            ("flip-flops", self.flip_flops),
            ("block RAMs", self.block_rams),
            ("multipliers", self.multipliers),
        ):
            share = usage.used / usage.available if usage.available else 0.0
            rows.append((name, f"{usage.used:,}", f"{usage.available:,}", f"{share:.1%}"))
        rows.insert(1, ("  of them carry", f"{self.carry_luts:,}", "", ""))
        return rows

    def __str__(self) -> str:
        """Return the report as a text table."""
        lines = [f"{self.design} on {self.board}{' (out of context)' if self.out_of_context else ''}"]
        lines += [
            f"  {name:<16}{used:>9}{available and f' of {available}':>12}{share:>8}".rstrip()
            for name, used, available, share in self.rows()
        ]
        for clock in self.clocks:
            verdict = "met" if clock.met else "NOT met"
            lines.append(
                f"  {clock.name}: {clock.achieved_mhz:.1f} MHz, required {clock.required_mhz:.1f} MHz: {verdict}"
            )
        if self.seed_mhz:
            found = sorted(self.seed_mhz.values())
            lines.append(
                f"  {len(found)} seeds: worst {found[0]:.1f}, median {median(found):.1f}, best {found[-1]:.1f} MHz; kept: "
                f"seed {self.seed}"
            )
        lines.append("  " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items()))
        if self.bitstream is not None:
            lines.append(f"  {self.bitstream}: sha256 {self.bitstream_sha256}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the report as JSON text."""
        figures = {**dataclasses.asdict(self), "timing_met": self.timing_met}
        return json.dumps(figures, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "SynthesisReport":
        """Read `to_json`'s text.

        Raises:
            ValueError: It is not a report.
        """
        try:
            figures = json.loads(text)
            del figures["timing_met"]
            for name in ("luts", "flip_flops", "block_rams", "multipliers"):
                figures[name] = Usage(**figures[name])
            figures["clocks"] = tuple(ClockTiming(**clock) for clock in figures["clocks"])
            return cls(**figures)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a synthesis report: {error}") from error


def read_report(directory: Path) -> SynthesisReport | None:
    """Return the report in a directory; None when there is none, it is damaged, or its bitstream is
    not the one it describes.
    """
    try:
        report = SynthesisReport.from_json((directory / REPORT_FILE).read_text(encoding="utf-8"))
        if report.bitstream is not None:
            digest = hashlib.sha256((directory / report.bitstream).read_bytes()).hexdigest()
            if digest != report.bitstream_sha256:
                return None
    except (OSError, ValueError):
        return None
    return report
