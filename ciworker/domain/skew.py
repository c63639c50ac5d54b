"""How far another machine's clock is ahead of ours."""


def clock_ahead(theirs: float, asked: float, answered: float, believed: float = 0.0) -> float:
    """What was believed, as far as this answer allows: seconds, as all of these are.

    It is exact to the time that the answer took; clocks of one machine stay at 0.

    Args:
        theirs: their clock, looked at between the next two.
        asked: our clock.
        answered: likewise.
        believed: until now.
    """
    return min(max(believed, theirs - answered), theirs - asked)
