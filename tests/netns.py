"""Hosts as Linux network namespaces with names of their own, and links between them."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

ENTER = 'hostname "$1"; mount --bind "$2" /etc/hosts; shift 2; exec "$@"'


def why_not() -> str:
    """Why there can be no namespaces here; empty if there can be."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return "hosts are Linux network namespaces: needs root and the programs ip and unshare"
    probe = f"hfexp-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"hosts are Linux network namespaces, which are not allowed here: {made.stderr.strip()}"
    ip("netns", "del", probe)
    return ""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Namespace:
    """A network namespace with one link, and what runs in it under a host name of its own."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.namespace = f"hfexp-{name}-{os.getpid()}"
        self.link = f"v{name}{os.getpid()}"[:15]

    def within(self, hosts: Path, *words: str, before: str = "true") -> list[str]:
        """The command that runs a command in it.

        `hosts` is the host's /etc/hosts, `before` a shell command that runs first, in a mount namespace of its own.
        """
        enter = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "bash", "-c", f"{before}; {ENTER}", "_"]
        return [*enter, self.name, str(hosts), *words]

    def configure(self, link: str, address: str) -> None:
        """Give a link that is in it an address with the length of its prefix, and switch it on."""
        ip("-n", self.namespace, "addr", "add", address, "dev", link)
        ip("-n", self.namespace, "link", "set", link, "up")

    def kill(self) -> None:
        """Switch the host off: SIGKILL for all that runs in it."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def pids(self) -> list[str]:
        return subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True
        ).stdout.split()


@contextlib.contextmanager
def namespaces(*hosts: Namespace) -> Iterator[None]:
    """Create namespaces in which only loopback is switched on; remove them with all that runs in them."""
    try:
        for host in hosts:
            ip("netns", "add", host.namespace)
            ip("-n", host.namespace, "link", "set", "lo", "up")
        yield
    finally:
        for host in hosts:
            if host.namespace in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout:
                host.kill()
                # With a link, its other end goes at once, and not only when the kernel gets to it.
                subprocess.run(["ip", "-n", host.namespace, "link", "del", host.link], check=False)
                ip("netns", "del", host.namespace)


def join(a: Namespace, b: Namespace) -> None:
    """Link two hosts: both ends are born inside, and nothing shows outside."""
    ip("link", "add", a.link, "netns", a.namespace, "type", "veth", "peer", "name", b.link, "netns", b.namespace)
    for host in (a, b):
        host.configure(host.link, f"{host.address}/24")


def join_outside(host: Namespace, outside: str) -> None:
    """Link a host with the namespace of this process, which gets an address in the same /24 and is its gateway."""
    end = f"o{host.link}"[:15]
    ip("link", "add", end, "type", "veth", "peer", "name", host.link, "netns", host.namespace)
    ip("addr", "add", f"{outside}/24", "dev", end)
    ip("link", "set", end, "up")
    host.configure(host.link, f"{host.address}/24")
    ip("-n", host.namespace, "route", "add", "default", "via", outside)
