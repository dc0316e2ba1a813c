"""The exporter: one actor per Ray cluster that serves `/metrics` for every run on it.

Runs hold leases, which their driver renews. An ended trial's series stay for `linger_s` seconds, so
that the last verdict is scraped; a driver that dies stops renewing, and its series go likewise. The
actor ends after the last lease and the last series.

A killed actor comes back empty, and one that ended while a driver still lives is started anew.
Every renewal says where it serves and whose it is, so the first of them opens the port again, and
its answer tells the driver to push everything once more.
"""

import contextlib
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import exit_actor
from ray.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
)

from service.config import TelemetryConfig
from service.errors import ClusterError
from service.telemetry.lines import Values
from service.telemetry.series import Series, Server

NAMESPACE = "crossreid"
ACTOR_NAME = "exporter"
LEASE_S = 60.0
"""Seconds that a lease lasts without renewal."""
_CALL_S = 30.0
_BACK_S = 20.0
"""Seconds in which a killed exporter is back, also on a busy machine."""
_ASK_S = 0.2
_EVERYWHERE = ("", "0.0.0.0", "::")
"""Hosts that mean every address of the machine."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the exporter listens. reach: the address for others, as host:port. note: why it is not
    at the port that was asked for, or an empty text."""

    host: str
    port: int
    reach: str
    note: str


class Exporter:
    """The actor: a `Series`, its server, and a clock that ends both when nobody needs them."""

    def __init__(self) -> None:
        self._series = Series()
        self._server: Server | None = None
        self._waits_until = time.monotonic() + LEASE_S
        self._self = ray.get_runtime_context().current_actor
        threading.Thread(target=self._tick, daemon=True).start()

    def acquire(self, run: str, host: str, port: int, or_any_port: bool) -> Place:
        """Takes the run's lease.

        An exporter that serves already keeps its address. Raises OSError when the port is taken or
        the host is not an address of this machine.
        """
        note = "" if self._server is None else self._other_place(host, port)
        if self._server is None:
            note = self._open(host, port, or_any_port)
        server = self._server
        assert server is not None
        self._series.take(run, LEASE_S)
        return Place(server.host, server.port, _reach(server), note)

    def renew(self, run: str, host: str, port: int) -> bool:
        """Renews the lease, and serves at `port` again after a restart; False when the run was not
        known any more. Raises OSError while the port is taken."""
        is_known = self._series.lease(run, LEASE_S)
        if self._server is None:
            self._server = Server(self._series, host, port)
        return is_known

    def push(self, run: str, trial: str, values: Mapping[str, Any], linger_s: float) -> None:
        self._series.push(run, trial, values, linger_s)

    def end(self, run: str, trial: str) -> None:
        self._series.end(run, trial)

    def release(self, run: str) -> float:
        return self._series.release(run)

    def is_seen(self, run: str) -> bool:
        return self._series.is_seen(run)

    def sweep(self) -> None:
        """Called by the actor itself; ends it when nothing is left, or nobody came in time."""
        if not self._series.sweep():
            return
        if self._server is not None:
            self._server.close()
            exit_actor()
        if time.monotonic() > self._waits_until:
            exit_actor()

    def _open(self, host: str, port: int, or_any_port: bool) -> str:
        """Starts to serve; why not at `port`, or an empty text."""
        try:
            self._server = Server(self._series, host, port)
            return ""
        except OSError as taken:
            try:
                if not or_any_port:
                    raise
                self._server = Server(self._series, host, 0)
            except OSError:
                self._waits_until = 0.0
                raise
            return f"port {port} is taken ({taken.strerror})"

    def _other_place(self, host: str, port: int) -> str:
        assert self._server is not None
        is_same = port in (0, self._server.port) and host == self._server.host
        return "" if is_same else "the cluster's exporter runs already"

    def _tick(self) -> None:
        while True:
            time.sleep(1.0)
            with contextlib.suppress(RayError):
                ray.get(self._self.sweep.remote())


def _reach(server: Server) -> str:
    host = ray.util.get_node_ip_address() if server.host in _EVERYWHERE else server.host
    return f"[{host}]:{server.port}" if ":" in host else f"{host}:{server.port}"


@dataclass(slots=True)
class _Told:
    """A trial's last snapshot; ended_at: when it ended, on the rising clock."""

    values: Values
    ended_at: float | None = None


class ExporterLease:
    """A driver's hold on the cluster's exporter; sending never waits.

    It keeps what it sent, and sends it again to an exporter that came back empty. address: where
    `/metrics` is. trouble: why it does not serve, or an empty text, as of the last renewal.
    """

    def __init__(self, handle: Any, run: str, linger_s: float, place: Place) -> None:
        self._handle = handle
        self._run = run
        self._linger_s = linger_s
        self._place = place
        self._told: dict[str, _Told] = {}
        self._answer: Any = None
        self.address = f"http://{place.reach}/metrics"
        self.reach, self.note = place.reach, place.note
        self.trouble = ""

    def push(self, trial: str, values: Values) -> None:
        """Sends a trial's full snapshot."""
        self._told[trial] = _Told(values)
        self._handle.push.remote(self._run, trial, values, self._linger_s)

    def end(self, trial: str) -> None:
        """The trial has ended by itself."""
        if trial in self._told:
            self._told[trial].ended_at = time.monotonic()
        self._handle.end.remote(self._run, trial)

    def renew(self) -> None:
        """To be called well within `LEASE_S`; what the last call brought is known then."""
        self._forget()
        if self._answer is not None:
            if not ray.wait([self._answer], timeout=0)[0]:
                return
            self._hear(self._answer)
        self._answer = self._asked()

    def release(self) -> float:
        """Gives the hold up; the exporter serves the last snapshots for `linger_s` more.

        Waits for an exporter that is just being started again, so that the end is not lost with it.
        Returns the seconds within which everybody who scrapes regularly has seen the end; 0 when
        nobody does.
        """
        until = time.monotonic() + _BACK_S
        while not self._hear(self._asked()) and time.monotonic() < until:
            time.sleep(_ASK_S)
        with contextlib.suppress(RayError):
            return ray.get(self._handle.release.remote(self._run), timeout=_CALL_S)
        return 0.0

    def wait_until_seen(self, seconds: float) -> bool:
        """Whether all of those came after `release`, at the latest after `seconds`.

        With an exporter that is lost meanwhile goes who scraped: the end is told once more, and
        `seconds` are waited out.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                if ray.get(self._handle.is_seen.remote(self._run), timeout=_CALL_S):
                    return True
            except RayError:
                self.release()
                break
            time.sleep(_ASK_S)
        time.sleep(max(0.0, until - time.monotonic()))
        return False

    def _asked(self) -> Any:
        place = self._place
        return self._handle.renew.remote(self._run, place.host, place.port)

    def _hear(self, answer: Any) -> bool:
        """Whether the exporter serves, and knows everything that it must."""
        try:
            if not ray.get(answer, timeout=_CALL_S):
                self._push_all()
            self.trouble = ""
            return True
        except RayTaskError as error:
            self.trouble = f"the exporter cannot serve at {self._place.reach}: {error.cause}"
            self._push_all()
        except ActorDiedError:
            # Its leases had run out while their drivers stood still, or somebody ended it. Whoever
            # cannot start it now tries at the next renewal.
            with contextlib.suppress(RayError, ValueError):
                self._handle = _actor()
            self.trouble = "the exporter had ended and is started anew"
        except RayError:
            # It is being started again.
            pass
        return False

    def _push_all(self) -> None:
        """Everything that an exporter still shows that was never lost."""
        self._forget()
        for trial, told in self._told.items():
            self._handle.push.remote(self._run, trial, told.values, self._linger_s)
            if told.ended_at is not None:
                self._handle.end.remote(self._run, trial)

    def _forget(self) -> None:
        """Trials that ended so long ago that no exporter shows them."""
        since = time.monotonic() - self._linger_s
        over = [t for t, told in self._told.items() if (told.ended_at or math.inf) <= since]
        for trial in over:
            del self._told[trial]


def acquire(config: TelemetryConfig, run: str, *, local: bool) -> ExporterLease:
    """A lease on the cluster's exporter, which is started if there is none.

    local: the cluster belongs to this command alone. Nothing can be set up to scrape it at a fixed
        port, so a taken port is replaced by a free one, and `note` says so. On a shared cluster the
        port is what Prometheus was told, so a taken one is an error.

    Raises:
        ClusterError: the port is taken, the host is not the head's, or the exporter cannot be
            started.
    """
    until = time.monotonic() + _BACK_S
    while True:
        handle = _actor()
        try:
            call = handle.acquire.remote(run, config.host, config.port, local)
            place: Any = ray.get(call, timeout=_CALL_S)
            return ExporterLease(handle, run, config.linger_s, place)
        except RayTaskError as error:
            raise ClusterError(
                f"the exporter cannot listen on {config.host}:{config.port}: {error.cause}; set "
                "telemetry.port to a free port (0 takes any), telemetry.host to an address of the "
                "head node (0.0.0.0 is all of them), or telemetry.enabled=false"
            ) from error
        except RayActorError as error:
            # It ended between being found and being asked, or is just being started again.
            if time.monotonic() > until:
                raise ClusterError(
                    f"the exporter ends as soon as it starts, for {_BACK_S:g} s: is there memory "
                    "left on the head node? Or set telemetry.enabled=false"
                ) from error
            time.sleep(_ASK_S)
        except GetTimeoutError as error:
            raise ClusterError(
                f"the exporter did not start within {_CALL_S:g} s; is the head node reachable? Or "
                "set telemetry.enabled=false"
            ) from error


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
