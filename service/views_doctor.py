"""What the doctor's commands show: aligned lines, tables, and one line at the end."""

import shutil
import sys
import textwrap
from collections.abc import Iterator

from service.doctor.check import Check, Diagnosis, Status, Table

_WIDE = 120
_NARROW = 60


def diagnosis(found: Diagnosis, width: int | None = None) -> str:
    """The text of a diagnosis: tables first, so that what matters stands at the end.

    width: columns of a line; None takes the terminal's, or 120 where there is none.
    """
    columns = max(_NARROW, width or _width())
    parts = [f"Doctor: {found.subject}\n"]
    parts += [_table(table) for table in found.tables if table.rows]
    parts += [textwrap.fill(note, columns, subsequent_indent="  ") + "\n" for note in found.notes]
    parts.append("\n" + "".join(_checks(found.checks, columns)) + "\n")
    parts.append(textwrap.fill(_closing(found), columns, subsequent_indent="  ") + "\n")
    return "".join(parts)


def _checks(checks: tuple[Check, ...], columns: int) -> Iterator[str]:
    names = max((len(check.name) for check in checks), default=0)
    left = len("warn  ") + names + 2
    for check in checks:
        head = f"{check.status:<6}{check.name:<{names}}  "
        yield _paragraph(head, check.found, columns)
        if check.status is Status.OK:
            continue
        more = f"crossreid explain {check.cause}" if check.cause else ""
        for word, text in (("expected", check.expected), ("try", check.remedy), ("more", more)):
            if text:
                yield _paragraph(" " * left + f"{word}: ", text, columns, left + 2)


def _paragraph(lead: str, text: str, columns: int, indent: int | None = None) -> str:
    below = " " * (len(lead) if indent is None else indent)
    # A word that is wider than the rest of the line, such as a path, is left whole.
    return (
        textwrap.fill(
            text,
            columns,
            initial_indent=lead,
            subsequent_indent=below,
            break_long_words=False,
            break_on_hyphens=False,
        )
        + "\n"
    )


def _closing(found: Diagnosis) -> str:
    if found.closing:
        return found.closing
    counts = {s: sum(check.status is s for check in found.checks) for s in Status}
    checks = f"{len(found.checks)} checks" if len(found.checks) != 1 else "1 check"
    told = ", ".join(f"{counts[s]} {s}" for s in Status if counts[s])
    return f"{checks}: {told}"


def _table(table: Table) -> str:
    """Columns as wide as their cells; the first is text, numbers stand to the right."""
    cells = [table.columns, *table.rows]
    wide = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    right = [_is_numeric(row[i] for row in table.rows) for i in range(len(table.columns))]
    lines = [
        "  ".join(
            cell.rjust(wide[i]) if right[i] else cell.ljust(wide[i]) for i, cell in enumerate(row)
        ).rstrip()
        for row in cells
    ]
    return "\n".join([table.title, *(f"  {line}" for line in lines)]) + "\n\n"


def _is_numeric(cells: Iterator[str]) -> bool:
    found = [cell for cell in cells if cell]
    return bool(found) and all(cell.lstrip("+-")[:1].isdigit() for cell in found)


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDE
