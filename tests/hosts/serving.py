"""Records over HTTP from one host, and who fetched what."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.hosts.netns import Host
from tests.hosts.nodes import PYTHON

_PORT = 8000
_FETCHED = re.compile(r'^([\d.]+) .*"GET /(\S+) HTTP/[\d.]+" 20[06]', re.MULTILINE)
_UP_S = 20.0


@dataclass(frozen=True, slots=True)
class Shelf:
    """url: the folder's. log: one line a request."""

    url: str
    log: Path

    def fetched(self) -> Counter[tuple[str, str]]:
        """How often each host's address fetched each file."""
        return Counter(_FETCHED.findall(self.log.read_text()))


@contextmanager
def served(folder: Path, host: Host, log: Path) -> Iterator[Shelf]:
    """`folder`, served by `host` until the end of the block."""
    words = ("-u", "-m", "http.server", str(_PORT), "--bind", host.address)
    server = host.start((PYTHON, *words, "--directory", str(folder)), log)
    until = time.monotonic() + _UP_S
    while "Serving HTTP" not in log.read_text():
        if server.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"no HTTP server on {host.name}:\n{log.read_text()}")
        time.sleep(0.05)
    try:
        yield Shelf(f"http://{host.address}:{_PORT}", log)
    finally:
        server.kill()
        server.wait()
