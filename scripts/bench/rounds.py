"""What all benches share: contenders that take turns, what each round measured, and the verdict.

Every contender runs in each round, in turn, so that what else the machine does hits all alike;
a ratio is made of the two figures of one round.
"""

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_UNITS = {
    "x": (1, "{:.2f} x"),
    "ms": (1e3, "{:.1f} ms"),
    "s": (1, "{:.2f} s"),
    "MB": (1e-6, "{:.1f} MB"),
    "KiB": (1 / 1024, "{:.1f} KiB"),
    "M/s": (1e-6, "{:.2f} M/s"),
    "%": (100, "{:.2f} %"),
}

Contender = Callable[[], Awaitable[Mapping[str, float]]]


class Broken(Exception):
    """A contender did not do its work: its figures say nothing."""


@dataclass(frozen=True)
class Ground:
    """Where a bench works. rounds, few: how many, of short contenders and of long ones."""

    image: str
    folder: Path
    rounds: int = 20
    few: int = 5


@dataclass
class Samples:
    """The figures of each round, by contender and what was measured."""

    of: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, contender: str, figures: Mapping[str, float]) -> None:
        for what, figure in figures.items():
            self.of.setdefault((contender, what), []).append(figure)

    def median(self, contender: str, what: str) -> float:
        return statistics.median(self.of[contender, what])

    def ratios(self, what: str, contender: str, base: str) -> list[float]:
        """Of each round."""
        pairs = zip(self.of[contender, what], self.of[base, what], strict=True)
        return [one / other for one, other in pairs]

    def beside(self, what: str, contender: str, base: str, unit: str = "ms") -> str:
        """The medians of both, in words."""
        ours, theirs = self.median(contender, what), self.median(base, what)
        return f"{shown(ours, unit)}; {base} {shown(theirs, unit)}"


@dataclass(frozen=True)
class Check:
    """One promise of a row and what came out, judged by the median of the rounds.

    unit: one of `shown`'s. least: the target is the least that is wanted, not the most.
    centile: instead of the median. note: what the figures are made of.
    """

    row: str
    name: str
    values: Sequence[float]
    target: float
    unit: str = "x"
    least: bool = False
    centile: int = 50
    note: str = ""

    @property
    def reached(self) -> float:
        return centile(self.values, self.centile)

    @property
    def met(self) -> bool:
        return self.reached >= self.target if self.least else self.reached <= self.target

    @property
    def verdict(self) -> str:
        return "PASS" if self.met else "MISS"

    @property
    def spread(self) -> str:
        """Least, judged and most."""
        return " / ".join(
            shown(value, self.unit) for value in (min(self.values), self.reached, max(self.values))
        )

    @property
    def wanted(self) -> str:
        return f"{'>=' if self.least else '<='} {shown(self.target, self.unit)}"

    def line(self) -> str:
        which = "median" if self.centile == 50 else f"p{self.centile}"
        note = f"  ({self.note})" if self.note else ""
        told = f"{self.verdict}  {self.row:<4}{self.name}: {self.spread} (min/{which}/max)"
        return f"{told}, wanted {self.wanted}{note}"


def centile(values: Sequence[float], percent: int) -> float:
    """The nearest rank; the median halfway between two."""
    if percent == 50:
        return statistics.median(values)
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def shown(figure: float, unit: str) -> str:
    """A figure with its unit: `x` of anything, `ms` of seconds, `MB` and `KiB` of bytes, …"""
    factor, form = _UNITS[unit]
    return form.format(figure * factor)


async def taking_turns(
    contenders: Mapping[str, Contender], rounds: int, warm_up: int = 1
) -> Samples:
    """What so many rounds measured, after some that do not count."""
    samples, names = Samples(), list(contenders)
    for number in range(-warm_up, rounds):
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            figures = await contenders[name]()
            if number >= 0:
                samples.add(name, figures)
    return samples


def on_a_thread(
    work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> Callable[[], Awaitable[T]]:
    """`work`, which blocks; a cancellation is heard once it is over, not before."""

    async def run() -> T:
        task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
        try:
            return await asyncio.shield(task)
        finally:
            await asyncio.wait([task])

    return run
