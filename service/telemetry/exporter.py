"""The exporter: one actor per Ray cluster that serves `/metrics` for every run on it.

Runs hold leases, which their driver renews. An ended trial's series stay for `linger_s` seconds, so
that the last verdict is scraped; a driver that dies stops renewing, and its series go likewise. The
actor ends after the last lease and the last series.

A killed actor comes back empty. Every push and renewal says where it serves and whose it is, so the
first of them opens the port again.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from wsgiref.simple_server import WSGIServer

import ray
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from ray.actor import exit_actor
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError, RayTaskError

from service.config import TelemetryConfig
from service.errors import ClusterError
from service.telemetry.lines import LABELS, LINES, PREFIX, Line, Values, checked

NAMESPACE = "crossreid"
ACTOR_NAME = "exporter"
LEASE_S = 60.0
"""Seconds that a lease lasts without renewal."""
_CALL_S = 30.0


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

    def lease(self, run: str, seconds: float) -> None:
        """Takes or renews the run's lease."""
        with self._lock:
            self._leases[run] = self._clock() + seconds

    def release(self, run: str) -> None:
        """Ends the lease and all trials of the run."""
        with self._lock:
            self._leases.pop(run, None)
            self._end(lambda key: key[0] == run)

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


class Server:
    """`/metrics` over HTTP for one `Series`."""

    def __init__(self, series: Series, host: str, port: int) -> None:
        """Raises OSError when the port is taken; port 0 takes any free one."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(series)
        self._server: WSGIServer
        self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        self.host, self.port = host, self._server.server_port
        self.address = f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5.0)


class Exporter:
    """The actor: a `Series`, its server, and a clock that ends both when nobody needs them."""

    def __init__(self) -> None:
        self._series = Series()
        self._server: Server | None = None
        self._waits_until = time.monotonic() + LEASE_S
        self._self = ray.get_runtime_context().current_actor
        threading.Thread(target=self._tick, daemon=True).start()

    def acquire(self, run: str, host: str, port: int, or_any_port: bool) -> tuple[str, int, str]:
        """Takes the run's lease: host, port, and why it is not the one asked for, or an empty text.

        An exporter that serves already keeps its address. Raises OSError when the port is taken.
        """
        note = "" if self._server is None else self._other_port(port)
        if self._server is None:
            try:
                self._server = Server(self._series, host, port)
            except OSError as error:
                if not or_any_port:
                    self._waits_until = 0.0
                    raise
                self._server = Server(self._series, host, 0)
                note = f"port {port} is taken ({error.strerror})"
        self._series.lease(run, LEASE_S)
        return self._server.host, self._server.port, note

    def renew(self, run: str, host: str, port: int) -> None:
        """Renews the lease, and serves at `port` again after a restart."""
        self._series.lease(run, LEASE_S)
        if self._server is None:
            # A port that is still taken is tried again at the next call.
            with contextlib.suppress(OSError):
                self._server = Server(self._series, host, port)

    def push(self, run: str, trial: str, values: Mapping[str, Any], linger_s: float) -> None:
        self._series.push(run, trial, values, linger_s)

    def end(self, run: str, trial: str) -> None:
        self._series.end(run, trial)

    def release(self, run: str) -> None:
        self._series.release(run)

    def sweep(self) -> None:
        """Called by the actor itself; ends it when nothing is left, or nobody came in time."""
        if not self._series.sweep():
            return
        if self._server is not None:
            self._server.close()
            exit_actor()
        if time.monotonic() > self._waits_until:
            exit_actor()

    def _other_port(self, port: int) -> str:
        assert self._server is not None
        serves = self._server.port
        return "" if port in (0, serves) else "the cluster's exporter runs already"

    def _tick(self) -> None:
        while True:
            time.sleep(1.0)
            with contextlib.suppress(RayError):
                ray.get(self._self.sweep.remote())


class ExporterLease:
    """A driver's hold on the cluster's exporter; sending never waits.

    address: where `/metrics` is. note: why it is not at the port that was asked for.
    """

    def __init__(
        self, handle: Any, run: str, linger_s: float, *, host: str, port: int, note: str
    ) -> None:
        self._handle = handle
        self._run = run
        self._linger_s = linger_s
        self._place = (host, port)
        self.address = f"http://{host}:{port}/metrics"
        self.note = note

    def push(self, trial: str, values: Values) -> None:
        """Sends a trial's full snapshot, and renews."""
        self.renew()
        self._handle.push.remote(self._run, trial, values, self._linger_s)

    def end(self, trial: str) -> None:
        self._handle.end.remote(self._run, trial)

    def renew(self) -> None:
        """To be called well within `LEASE_S`."""
        self._handle.renew.remote(self._run, *self._place)

    def release(self) -> None:
        """Waits until the exporter knows; it serves the last snapshots for `linger_s` more."""
        with contextlib.suppress(RayError):
            ray.get(self._handle.release.remote(self._run), timeout=_CALL_S)


def acquire(config: TelemetryConfig, run: str, *, local: bool) -> ExporterLease:
    """A lease on the cluster's exporter, which is started if there is none.

    local: the cluster belongs to this command alone. Nothing can be set up to scrape it at a fixed
        port, so a taken port is replaced by a free one, and `note` says so. On a shared cluster the
        port is what Prometheus was told, so a taken one is an error.

    Raises:
        ClusterError: the port is taken, or the exporter cannot be started.
    """
    for last_try in (False, True):
        handle = _actor()
        try:
            call = handle.acquire.remote(run, config.host, config.port, local)
            host, port, note = ray.get(call, timeout=_CALL_S)
            return ExporterLease(handle, run, config.linger_s, host=host, port=port, note=note)
        except RayTaskError as error:
            raise ClusterError(
                f"the exporter cannot listen on {config.host}:{config.port}: {error.cause}; set "
                "telemetry.port to a free port (0 takes any), or telemetry.enabled=false"
            ) from error
        except ActorDiedError:
            # It ended between being found and being asked: the next one is new.
            if last_try:
                raise ClusterError("the exporter ends as soon as it starts") from None
        except GetTimeoutError as error:
            raise ClusterError(
                f"the exporter did not start within {_CALL_S:g} s; is the head node reachable? Or "
                "set telemetry.enabled=false"
            ) from error
    raise AssertionError


def _actor() -> Any:
    return (
        ray.remote(Exporter)
        .options(
            name=ACTOR_NAME,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            resources={"node:__internal_head__": 0.001},
            scheduling_strategy="DEFAULT",
        )
        .remote()
    )
