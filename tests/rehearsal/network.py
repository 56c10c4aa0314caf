"""The networks of a place: the machine's own with an address for each node, and a line to the internet."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from rehearsal.commands import inside, program, run
from rehearsal.facility import WORLD_ADDRESS, Facility

HOLD = 'hostname "$1"; echo ready; exec sleep infinity'
SWITCH = "switch"


def make_world() -> None:
    """Set up the network of the hosted services in this process's own network namespace; nothing is forwarded."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "add", f"{WORLD_ADDRESS}/32", "dev", "lo")
    forward = Path("/proc/sys/net/ipv4/ip_forward")
    if os.access(forward, os.W_OK):
        forward.write_text("0")  # no facility reaches another one


def connect(facility: Facility, pid: int) -> None:
    """Connect the network namespace of a place with the world; called in the world."""
    line = f"w{facility.number}"
    run("ip", "link", "add", line, "type", "veth", "peer", "name", "up0", "netns", pid)
    run("ip", "address", "add", f"{facility.gateway}/24", "dev", line)
    run("ip", "link", "set", line, "up")


def make_network(facility: Facility) -> dict[str, int]:
    """Set up the networks in the place, wait for the line to the world, and return a process id for each node.

    Such a process holds the node's own network and host name.
    """
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", SWITCH, "type", "bridge")
    run("ip", "link", "set", SWITCH, "up")
    names = {"hsn0", facility.driver_interface}
    for i, name in enumerate(sorted(names, reverse=True)):
        address = facility.login_address if name == facility.driver_interface else f"10.91.{facility.number}.{1 + i}"
        _plug(name, f"p{i}", None)
        run("ip", "address", "add", f"{address}/24", "dev", name)
        run("ip", "link", "set", name, "up")
    nodes = {node: _hold(node) for node in facility.nodes}
    for i, (node, address) in enumerate(facility.node_addresses().items()):
        _plug("hsn0", f"n{i}", nodes[node])
        within = inside(nodes[node], ("net",))
        run(*within, "ip", "link", "set", "lo", "up")
        run(*within, "ip", "address", "add", f"{address}/24", "dev", "hsn0")
        run(*within, "ip", "link", "set", "hsn0", "up")
    return nodes


def join_world(facility: Facility) -> None:
    """Configure the line to the world that ``connect`` has made; login nodes alone have one."""
    run("ip", "address", "add", f"{facility.outside_address}/24", "dev", "up0")
    run("ip", "link", "set", "up0", "up")
    run("ip", "route", "add", "default", "via", facility.gateway)


def _plug(name: str, port: str, pid: int | None) -> None:
    """Make an interface, of this namespace or that of a process, whose other end is on the switch."""
    where = () if pid is None else ("netns", pid)
    run("ip", "link", "add", port, "type", "veth", "peer", "name", name, *where)
    run("ip", "link", "set", port, "master", SWITCH)
    run("ip", "link", "set", port, "up")


def _hold(node: str) -> int:
    command = [program("unshare"), "--net", "--uts", "bash", "-c", HOLD, "bash", node]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process.pid


def hosts_file(facility: Facility) -> str:
    """Return ``/etc/hosts`` of a place: its own names alone."""
    own: Mapping[str, str] = {facility.login: facility.login_address, **facility.node_addresses()}
    return "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in own.items())
