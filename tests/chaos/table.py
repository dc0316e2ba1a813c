"""What kills cost, as a table."""

import statistics
from collections.abc import Sequence

from tests.chaos.chased import Struck
from tests.chaos.kills import Victim

_OVER = ("", "", "seconds to next step", "steps redone")
_HEAD = ("killed", "times", "median", "most", "median", "most")


def table(kills: Sequence[Struck]) -> str:
    """A row for each kind of process that was killed, and one for all.

    Kills before the last one's next step, and those at the very end, have no such step.
    """
    groups = {victim: [k for k in kills if k.kill.victim is victim] for victim in Victim}
    rows = [_row(victim, group) for victim, group in groups.items() if group]
    lines = [_line(row) for row in (_HEAD, *rows, _row("all", list(kills)))]
    return "\n".join(["{:<14}{:>7}{:>24}{:>16}".format(*_OVER), *lines])


def _row(name: str, kills: list[Struck]) -> tuple[str, ...]:
    back = [kill.back_s for kill in kills if kill.back_s is not None]
    redone = [kill.redone for kill in kills if kill.back_s is not None]
    return (
        name,
        str(len(kills)),
        f"{statistics.median(back):.1f}" if back else "-",
        f"{max(back):.1f}" if back else "-",
        f"{statistics.median(redone):g}" if redone else "-",
        str(max(redone)) if redone else "-",
    )


def _line(row: tuple[str, ...]) -> str:
    return "{:<14}{:>7}{:>14}{:>10}{:>10}{:>6}".format(*row)
