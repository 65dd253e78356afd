"""The address at which the machines of a run meet, as this machine sees it."""

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from hfexp.core.errors import ConfigError, one_of


@dataclass(frozen=True)
class Endpoint:
    """`launch.rdzv_endpoint`, resolved."""

    text: str
    """HOST:PORT as the user has written it."""
    address: str
    port: int
    is_here: bool
    """True if the address is one of this machine's."""
    local_address: str
    """Address with which this machine reaches the endpoint, so that the others can reach it there."""
    interface: str
    """Network interface that has the local address; empty if none has."""

    @property
    def is_loopback(self) -> bool:
        """Tell whether only processes of this machine can meet here."""
        return _is_loopback(self.address)

    @property
    def family(self) -> socket.AddressFamily:
        return _family(self.address)


def find_endpoint(text: str) -> Endpoint:
    """Resolve `launch.rdzv_endpoint` with this machine's names, addresses and routes; nothing is sent.

    Raises:
        ConfigError: it is not HOST:PORT, its name is unknown here, or other machines can't reach what it means here.
    """
    key = f"launch.rdzv_endpoint={text}"
    host, port = _split(key, text)
    addresses = _resolve(key, host, port)
    own = own_addresses()
    reachable = [address for address in addresses if not _is_loopback(address)]
    if not reachable and host not in ("localhost", *addresses):
        here = one_of(f"{address} ({name})" for address, name in own.items() if not _is_loopback(address))
        raise ConfigError(
            f"{key}: on this machine {host} means {addresses[0]}, which no other machine can reach (some systems "
            "write their own name like this into /etc/hosts); give the first machine's address in the network instead "
            f"of its name. This machine has {here or 'none'}"
        )
    address = (reachable or addresses)[0]
    is_here = address in own or _is_loopback(address)
    local = address if is_here else address_towards(address, port)
    if local is None:
        raise ConfigError(f"{key}: this machine has no route to {address}; are both in the same network?")
    return Endpoint(text, address, port, is_here, local, own.get(local, ""))


def own_addresses() -> dict[str, str]:
    """Return this machine's IP addresses, and the interface of each."""
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    return {
        entry.address.partition("%")[0]: name
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family in families
    }


def address_towards(address: str, port: int) -> str | None:
    """Return this machine's address on the way to another one, or None if there is no way; nothing is sent.

    A UDP socket that is connected only looks up the route (udp(7)).
    """
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))
            return probe.getsockname()[0]
    except OSError:
        return None


def _split(key: str, text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise ConfigError(
            f"{key} must be HOST:PORT: an address of the first machine and a free port of it, such as 10.0.0.1:29500 "
            "or [fd00::1]:29500"
        )
    return host, port


def _resolve(key: str, host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(
            f"{key}: this machine does not know {host} ({error.strerror}); give the first machine's address, or a "
            "name that all machines know"
        ) from error
    return [str(place[0]) for *_, place in found]


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
