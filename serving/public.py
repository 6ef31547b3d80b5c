"""May we connect there? Only to public addresses, checked where the connection is made, not where the name is read."""

import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

import aiohttp

_NAT64 = IPv6Network("64:ff9b::/96")
"""The prefix whose last 32 bits are an IPv4 address that a gateway connects to."""

_UNICAST, _EXAMPLES = IPv6Network("2000::/3"), IPv6Network("3fff::/20")
"""All of IPv6 that is given out (RFC 4291), and what of it is for documents (RFC 9637)."""


class RefusedAddressError(OSError):
    """An address that a webhook may not go to."""


def refusal(address: str, *, loopback: bool = False) -> str | None:
    """Return why an address may not be connected to, or None: only what anybody on the internet can reach may.

    Args:
        address: as numbers.
        loopback: whether this machine itself may be, in addition.

    >>> refusal("93.184.215.14"), refusal("127.0.0.1", loopback=True)
    (None, None)
    >>> refusal("::ffff:10.0.0.1")
    '::ffff:10.0.0.1 is not a public address'
    """
    inner = _inner(ip_address(address))
    if loopback and inner.is_loopback:
        return None
    public = inner.is_global and not inner.is_multicast
    if isinstance(inner, IPv6Address):
        public = public and inner in _UNICAST and inner not in _EXAMPLES
    return None if public else f"{address} is not a public address"


def _inner(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv6 one stands for, if it does; 6to4 and Teredo ones too."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip in _NAT64:
        return IPv4Address(ip.packed[-4:])
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else ip)


def guarded(*, loopback: bool) -> Callable[[tuple[Any, ...]], socket.socket]:
    """Return what makes a socket for the very address that is about to be connected to, or refuses.

    A name that was public when it was looked up and is not when it is connected to (DNS rebinding) is refused here.
    """

    def make(info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, address = info
        if (reason := refusal(address[0], loopback=loopback)) is not None:
            raise RefusedAddressError(f"{reason}: use one that is, and https")
        return socket.socket(family, kind, protocol)

    return make


def connector(*, loopback: bool, limit: int) -> aiohttp.TCPConnector:
    """Return what connects a client to public addresses only; certificates are checked as usual."""
    return aiohttp.TCPConnector(socket_factory=guarded(loopback=loopback), limit=limit, use_dns_cache=False)
