"""A kettle, a pot and some patience."""

import time
from dataclasses import dataclass

MINUTES = {"white": 2, "green": 2, "oolong": 3, "black": 4, "mint": 6}
DEGREES = {"white": 80, "green": 75, "oolong": 90, "black": 95, "mint": 100}


@dataclass(frozen=True)
class Cup:
    tea: str
    minutes: float

    @property
    def taste(self) -> str:
        ideal = MINUTES[self.tea]
        if self.minutes < ideal * 0.75:
            return "thin"
        if self.minutes > ideal * 1.5:
            return "bitter"
        return "lovely"


def brew(tea: str, minutes: float | None = None, *, seconds_per_minute: float = 0.1) -> Cup:
    """Steeps in hurried time: a minute takes `seconds_per_minute`. An unknown tea is a KeyError."""
    steep = MINUTES[tea] if minutes is None else minutes
    print(f"{tea}: {DEGREES[tea]} °C, {steep} min")
    time.sleep(steep * seconds_per_minute)
    return Cup(tea, steep)
