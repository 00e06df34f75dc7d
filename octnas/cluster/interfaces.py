"""Which network interface of a node the others of its cluster know it by."""

import fcntl
import socket
import struct
import sys

from octnas.cluster.start import LOOPBACK

# Of Linux: the IPv4 address of an interface; its name, then 24 bytes for the answer.
_SIOCGIFADDR = 0x8915
_NAME, _ADDRESS = 15, slice(20, 24)


def interface_of(address: str) -> str:
    """The name of the interface that has an IPv4 address; empty where none is found.

    Args:
        address: such as ``"127.0.0.1"``.
    """
    if sys.platform != "linux":
        return "lo0" if address == LOOPBACK else ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:_NAME])
            try:
                answer = fcntl.ioctl(one.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # it has no such address
            if socket.inet_ntoa(answer[_ADDRESS]) == address:
                return name
    return ""
