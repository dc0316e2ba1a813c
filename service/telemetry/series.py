"""Every trial's last snapshot, and `/metrics` over HTTP; without Ray."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.telemetry.lines import LABELS, LINES, PREFIX, Line, Values, checked


@dataclass(slots=True)
class _Trial:
    values: Values
    linger_s: float
    ended_at: float | None = None


class Series(Collector):
    """Who holds a lease, and every trial's last snapshot; safe to scrape from other threads.

    clock: seconds, rising.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._leases: dict[str, float] = {}
        self._trials: dict[tuple[str, str], _Trial] = {}
        self._released: dict[str, float] = {}
        self._scrapes: dict[str, tuple[float, ...]] = {}

    def lease(self, run: str, seconds: float) -> bool:
        """Takes or renews the run's lease; False when there was none to renew."""
        with self._lock:
            is_known = run in self._leases
            self._leases[run] = self._clock() + seconds
            self._released.pop(run, None)
            return is_known

    def take(self, run: str, seconds: float) -> None:
        """A new driver's lease: what a lost one of the same run left ends, unless it is pushed
        again."""
        with self._lock:
            self._end(lambda key: key[0] == run)
        self.lease(run, seconds)

    def release(self, run: str) -> float:
        """Ends the lease and all trials of the run; the seconds in which everybody who scrapes
        regularly has seen that, and 0 when nobody does."""
        with self._lock:
            now = self._clock()
            self._leases.pop(run, None)
            self._end(lambda key: key[0] == run)
            self._released[run] = now
            linger = [t.linger_s for (name, _), t in self._trials.items() if name == run]
            waits = [_patience_s(times) for times in self._regular(now)]
            return min(max(waits), *linger) if waits and linger else 0.0

    def is_seen(self, run: str) -> bool:
        """Whether everybody who scrapes regularly has come since the run was released."""
        with self._lock:
            since = self._released.get(run, 0.0)
            return all(times[-1] >= since for times in self._regular(since))

    def scraped_by(self, agent: str) -> None:
        """Somebody of this name is about to scrape."""
        with self._lock:
            self._scrapes[agent] = (*self._scrapes.get(agent, ())[-1:], self._clock())

    def push(self, run: str, trial: str, values: Mapping[str, Any], linger_s: float) -> None:
        """Replaces the trial's snapshot."""
        with self._lock:
            self._trials[run, trial] = _Trial(checked(values), linger_s)

    def end(self, run: str, trial: str) -> None:
        """The trial has ended by itself: it is shown as not running, then goes."""
        with self._lock:
            key = (run, trial)
            if key in self._trials:
                self._trials[key].values["running"] = {(): 0.0}
            self._end(lambda other: other == key)

    def sweep(self) -> bool:
        """Drops what has expired; True when nothing is left to serve."""
        with self._lock:
            now = self._clock()
            self._leases = {run: until for run, until in self._leases.items() if until > now}
            self._end(lambda key: key[0] not in self._leases)
            self._trials = {
                key: trial
                for key, trial in self._trials.items()
                if trial.ended_at is None or now - trial.ended_at < trial.linger_s
            }
            return not self._leases and not self._trials

    def collect(self) -> Iterable[Metric]:
        """Every line that has a sample, in the order of the table."""
        with self._lock:
            families = [self._family(line) for line in LINES]
        return [family for family in families if family.samples]

    def describe(self) -> Iterable[Metric]:
        return []

    def _regular(self, now: float) -> list[tuple[float, ...]]:
        """The last two times of those who scrape regularly, and did so lately at `now`."""
        pairs = [times for times in self._scrapes.values() if len(times) == 2]
        return [times for times in pairs if now - times[-1] <= _patience_s(times)]

    def _end(self, chosen: Callable[[tuple[str, str]], bool]) -> None:
        for key, trial in self._trials.items():
            if chosen(key) and trial.ended_at is None:
                trial.ended_at = self._clock()

    def _family(self, line: Line) -> Metric:
        kind = GaugeMetricFamily if line.kind == "gauge" else CounterMetricFamily
        family = kind(PREFIX + line.name, line.help, labels=[*LABELS, *line.labels])
        for key, trial in self._trials.items():
            for extra, value in trial.values.get(line.name, {}).items():
                family.add_metric([*key, *extra], value)
        return family


def _patience_s(times: tuple[float, ...]) -> float:
    """Two intervals between scrapes at these two times, and a second."""
    return 2 * (times[1] - times[0]) + 1.0


class Server:
    """`/metrics` over HTTP for one `Series`."""

    def __init__(self, series: Series, host: str, port: int) -> None:
        """Raises OSError when the port is taken or the address is not this machine's; port 0 takes
        any free one."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(series)
        self._server: WSGIServer
        self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        answer = self._server.get_app()
        assert answer is not None

        def noted(environ: Any, start: Any) -> Any:
            series.scraped_by(f"{environ['REMOTE_ADDR']} {environ.get('HTTP_USER_AGENT', '')}")
            return answer(environ, start)

        self._server.set_app(noted)
        self.host, self.port = host, self._server.server_port
        self.address = f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """A scrape that is being answered is answered."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5.0)
