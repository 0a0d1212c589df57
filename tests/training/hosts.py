"""Two hosts on one machine: network namespaces that are joined by a cable, and share nothing else
of the network."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Host:
    address: str
    prefix: tuple[str, ...]
    """Goes before a command that runs on the host."""


@contextmanager
def two_hosts() -> Iterator[list[Host]]:
    """Skips the test where they cannot be made (that needs `ip`, and root's rights)."""
    names = [f"alignmask-{os.getpid()}-{number}" for number in (1, 2)]
    cables = [f"am{os.getpid()}-{number}" for number in (1, 2)]
    addresses = ["10.213.77.1", "10.213.77.2"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    if shutil.which("ip") is None:
        pytest.skip("two hosts need the program ip (iproute2)")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for name, cable, address in zip(names, cables, addresses, strict=True):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            for device in (cable, "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield [
            Host(address, ("ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={cable}"))
            for name, cable, address in zip(names, cables, addresses, strict=True)
        ]
    except subprocess.CalledProcessError as error:
        pytest.skip(f"two hosts cannot be made here: {error.stderr.decode().strip()}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
