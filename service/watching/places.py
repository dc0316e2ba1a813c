"""Where the programs listen: addresses of this machine with ports that are free."""

import errno
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address

from service.errors import WatchError


@dataclass(frozen=True, slots=True)
class Place:
    """An address to listen on. host: numeric."""

    host: str
    port: int

    @property
    def listen(self) -> str:
        return _joined(self.host, self.port)

    @property
    def reached(self) -> str:
        """HOST:PORT at which this machine reaches it."""
        if not ip_address(self.host).is_unspecified:
            return self.listen
        return _joined("::1" if ":" in self.host else "127.0.0.1", self.port)

    @property
    def url(self) -> str:
        return f"http://{self.reached}"

    @property
    def is_loopback(self) -> bool:
        return ip_address(self.host).is_loopback


def free_places(host: str, ports: Mapping[str, int]) -> list[Place]:
    """A place on `host` for each port, in order; 0 takes any free port.

    ports: the option that sets it, to the port.

    Raises:
        WatchError: the host is no address of this machine, or a port is taken; names the option.
    """
    family, address = _address(host)
    chosen = [port for port in ports.values() if port]
    if len(set(chosen)) < len(chosen):
        raise WatchError(f"{' and '.join(ports)} are both {chosen[0]}; they must differ")
    places = []
    # All are held until the last is found, so that no free port is given twice.
    with ExitStack() as held:
        for option, port in ports.items():
            try:
                probe = held.enter_context(socket.create_server((address, port), family=family))
            except OSError as error:
                raise _refusal(error, address, port, option) from error
            places.append(Place(address, probe.getsockname()[1]))
    return places


def _address(host: str) -> tuple[socket.AddressFamily, str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise WatchError(
            f"--listen {host} is no address: {error.args[-1]}; expected one of this machine, as in "
            "127.0.0.1"
        ) from error
    family, _, _, _, address = found[0]
    return family, str(address[0])


def _refusal(error: OSError, host: str, port: int, option: str) -> WatchError:
    if error.errno == errno.EADDRINUSE:
        return WatchError(
            f"{_joined(host, port)} is taken by another program; end that (Debian's packages start "
            "services at once: systemctl disable --now prometheus prometheus-alertmanager), or "
            f"take another port: {option} PORT, where {option} 0 is any free one"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return WatchError(
            f"--listen {host} is no address of this machine; leave it out for 127.0.0.1, or give "
            "one that `ip address` shows"
        )
    said = os.strerror(error.errno) if error.errno else str(error)
    return WatchError(f"cannot listen on {_joined(host, port)}: {said}; see {option} and --listen")


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
