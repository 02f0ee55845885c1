"""What the running cluster changes on the host itself, and how each change is undone.

Three things only: a network link with its routes, control groups below one name, and a few kernel settings that the
kubelet insists on. Mounts, iptables rules and everything else live in the node's namespaces and end with them.
"""

import ipaddress
import json
from contextlib import suppress
from pathlib import Path

from testcluster import shell
from testcluster.errors import BusyError, ClusterError
from testcluster.layout import (
    CGROUP,
    HOST_ADDRESS,
    LINK,
    LINK_PREFIX,
    LINK_RANGE,
    NODE_ADDRESS,
    POD_RANGE,
    SERVICE_RANGE,
    Layout,
)
from testcluster.processes import Node, until

_CGROUPS = Path("/sys/fs/cgroup")
# Written by the kubelet at its start (setupKernelTunables), for the whole machine.
SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
_SYS = Path("/proc/sys")


# --- network


def connect(node: Node) -> None:
    """Join host and node by a link, and send the ranges of pods and services through it."""
    shell.run(["ip", "link", "add", LINK, "type", "veth", "peer", "name", "eth0", "netns", str(node.first().pid)])
    shell.run(["ip", "address", "add", f"{HOST_ADDRESS}/{LINK_PREFIX}", "dev", LINK])
    shell.run(["ip", "link", "set", LINK, "up"])
    node.run(["ip", "link", "set", "lo", "up"])
    node.run(["ip", "address", "add", f"{NODE_ADDRESS}/{LINK_PREFIX}", "dev", "eth0"])
    node.run(["ip", "link", "set", "eth0", "up"])
    node.run(["ip", "route", "add", "default", "via", HOST_ADDRESS])
    node.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])
    for network in (POD_RANGE, SERVICE_RANGE):
        shell.run(["ip", "route", "add", network, "via", NODE_ADDRESS, "dev", LINK])


def disconnect() -> None:
    """Remove the link; its routes go with it."""
    if linked():
        shell.succeeds(["ip", "link", "delete", LINK])
    until(lambda: not linked(), timeout=3)


def linked() -> bool:
    """Whether the link is there."""
    return Path("/sys/class/net", LINK).exists()


def check_free() -> None:
    """Raise if the addresses are somebody else's, such as a cluster of another user of this machine."""
    if linked():
        raise BusyError(f"the link {LINK} belongs to a test cluster of another user or cache folder: take that one down")
    ours = [ipaddress.ip_network(text) for text in (LINK_RANGE, POD_RANGE, SERVICE_RANGE)]
    for line in shell.run(["ip", "-o", "-4", "route", "show"]).splitlines():
        target = next((word for word in line.split()[:2] if word[0].isdigit()), None)  # a type may come first
        if target and any(ipaddress.ip_network(target).overlaps(network) for network in ours):
            raise BusyError(f"this machine already routes {target}: change the addresses in testcluster/layout.py")


# --- control groups


def make_cgroups() -> None:
    """Make our control group in every hierarchy; the kubelet wants it to be there before it starts."""
    for parent in _hierarchies():
        if (parent / "cgroup.subtree_control").exists():
            _delegate(parent)
        (parent / CGROUP).mkdir(exist_ok=True)


def remove_cgroups() -> bool:
    """Remove our control groups; False while a process that is just ending is still in one."""
    for parent in _hierarchies():
        root = parent / CGROUP
        for folder in sorted(root.rglob("*"), reverse=True) if root.exists() else []:
            if folder.is_dir():
                _remove(folder)
        _remove(root)
    return not cgroups()


def cgroups() -> list[Path]:
    """Our control groups that exist."""
    return [parent / CGROUP for parent in _hierarchies() if (parent / CGROUP).exists()]


def _hierarchies() -> list[Path]:
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    # Version 1: one folder a controller; links name the same folder a second time.
    return [path for path in sorted(_CGROUPS.iterdir()) if path.is_dir() and not path.is_symlink()]


def _delegate(parent: Path) -> None:
    for controller in (parent / "cgroup.controllers").read_text().split():
        with suppress(OSError):  # the kubelet says which one it misses, if it needs that one
            (parent / "cgroup.subtree_control").write_text(f"+{controller}")


def _remove(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


# --- kernel settings


def remember_settings(layout: Layout) -> None:
    """Keep what the kubelet is about to change."""
    values = {name: (_SYS / name).read_text().strip() for name in SETTINGS if (_SYS / name).exists()}
    _saved(layout).write_text(json.dumps(values))


def restore_settings(layout: Layout) -> None:
    """Put the kernel settings back."""
    try:
        values = json.loads(_saved(layout).read_text())
    except FileNotFoundError:
        return
    try:
        for name, value in values.items():
            (_SYS / name).write_text(value)
    except OSError as error:
        raise ClusterError(f"could not put the kernel settings {values} back: {error}") from error


def _saved(layout: Layout) -> Path:
    return layout.state / "kernel-settings.json"
