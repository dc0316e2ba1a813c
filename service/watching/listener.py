"""The listener to which Alertmanager tells alerts: HTTP on loopback, POST only, of bounded size."""

import json
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MOST_BYTES = 8 * 2**20
"""Of one message. An alert has about 1.5 KB, and a message those of one run."""
_PATIENCE_S = 10.0

Message = Mapping[str, Any]


class Listener:
    """Hands every message to `hear`, from threads of its own, once `start` was called.

    The port is taken at once, so that its `url` can be told to others before a thread runs.
    hear: raises KeyError or TypeError on a message that is not Alertmanager's.
    """

    def __init__(self, hear: Callable[[Message], None]) -> None:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hear = hear
        serve = partial(self._server.serve_forever, poll_interval=0.1)
        self._thread = threading.Thread(target=serve, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}/alerts"

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hear: Callable[[Message], None]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that goes away is no error here."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _PATIENCE_S

    def do_POST(self) -> None:
        self.send_response(self._answer())
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal is for alerts."""

    def _answer(self) -> HTTPStatus:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            return HTTPStatus.LENGTH_REQUIRED
        if int(length) > MOST_BYTES:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        try:
            self.server.hear(json.loads(self.rfile.read(int(length))))
        except (ValueError, KeyError, TypeError, AttributeError):
            return HTTPStatus.BAD_REQUEST
        return HTTPStatus.OK
