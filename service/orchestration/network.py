"""Which network interface the workers of several machines talk through.

Left to itself gloo binds to what the machine's own name leads to, which on many machines is
loopback: workers of two machines then never meet. Flags and objects go over gloo with GPUs too.
"""

import contextlib
import fcntl
import logging
import os
import socket
import struct
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from service.telemetry.logs import LOGGER

_SIOCGIFADDR = 0x8915


class Meeting(TorchConfig):
    """Ray's settings of the process group, with gloo on the interface by which Ray knows a node."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _MeetingBackend


class _MeetingBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Lets the workers meet; gives their room back when they do not.

        Ray forgets a group that fails here, and the next one would wait for its room for ever.
        """
        try:
            worker_group.execute(choose_interface)
            super().on_start(worker_group, backend_config)
        except Exception:
            worker_group.get_worker_group_state().placement_group_handle.shutdown()
            raise


def choose_interface() -> None:
    """Sets GLOO_SOCKET_IFNAME in this process, unless the user has; warns when none fits."""
    address = ray.util.get_node_ip_address()
    if name := interface_of(address):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    elif "GLOO_SOCKET_IFNAME" not in os.environ:
        logging.getLogger(LOGGER).warning(
            "no network interface of this machine has %s, by which Ray knows it; gloo takes the "
            "one that the machine's own name leads to. If workers of several machines do not meet, "
            "set GLOO_SOCKET_IFNAME on each",
            address,
        )


def interface_of(address: str) -> str:
    """The interface of this machine that has the IPv4 `address`; empty when none has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                asked = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(asked[20:24]) == address:
                    return name
    return ""
