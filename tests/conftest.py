"""What holds for all tests, however they are started.

Properties are judged by what they find: on a shared machine an example's time says little. A shell
lets what it starts in the background ignore SIGINT, and so would every command that a test stops.
Ranks that `launch` starts find what they need loaded, which else takes each of them seconds. What
tests measure is shown at the end.
"""

import multiprocessing
import signal
from typing import Any

from hypothesis import settings

settings.register_profile("without-deadline", deadline=None)
settings.load_profile("without-deadline")
signal.signal(signal.SIGINT, signal.default_int_handler)
multiprocessing.set_forkserver_preload(["service.training.loop"])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What tests have recorded, whether they passed or failed, and in whichever process; a "figure"
    has a table of its own."""
    measured = [
        f"{report.nodeid} {name}: {value}"
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        for name, value in report.user_properties
        if name != "figure"
    ]
    if measured:
        terminalreporter.section("measured")
    for line in measured:
        terminalreporter.write_line(line)
