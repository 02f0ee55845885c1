"""What runs and what is wrong, in lines for a person."""

import json
from pathlib import Path

from testcluster import host_state
from testcluster.cluster import Cluster
from testcluster.errors import ClusterError
from testcluster.processes import marked

_MIB = 1 << 20


def report(cluster: Cluster) -> tuple[list[str], bool]:
    """The lines to print and whether all is well. A cluster that is wholly down is reported, not an error of its own."""
    if not cluster.layout.state.exists():
        left = _leftovers(cluster)
        return ["the test cluster is down", *left], False
    lines: list[str] = []
    wrong: list[str] = []
    if not cluster.layout.complete.exists():
        wrong.append("`up` did not finish, or is at work now: run `scripts/cluster up` (again), or `down`")
    for name in ("node", *cluster.node.daemons()):
        running = cluster.node.running(name)
        lines.append(f"{name:26}{'runs' if running else 'STOPPED'}")
        if not running:
            wrong.append(f"{name} does not run: see `scripts/cluster logs {name}`; `down` and `up` start anew")
    if cluster.node.running("kube-apiserver") and cluster.layout.kubeconfig.exists():
        try:
            found, broken = _objects(cluster)
            lines += found
            wrong += broken
        except (ClusterError, ValueError) as error:
            wrong.append(f"the API server does not answer: {str(error).rpartition(' | ')[2]}")
    lines.append(f"memory of all processes    {_memory(cluster) // _MIB} MiB")
    lines.append(f"kubeconfig                 {cluster.layout.kubeconfig}")
    return [*lines, *(f"wrong: {line}" for line in wrong)], not wrong


def _objects(cluster: Cluster) -> tuple[list[str], list[str]]:
    lines, wrong = [], []
    listed = cluster.kubectl("get", "nodes,deployments,pods", "--all-namespaces", "--output=json", timeout=10)
    items = json.loads(listed)["items"]
    for item in items:
        name = f"{item['kind'].lower()} {item['metadata']['name']}"
        conditions = {entry["type"]: entry for entry in item.get("status", {}).get("conditions", [])}
        wanted = {"Node": "Ready", "Deployment": "Available"}.get(item["kind"])
        if wanted and conditions.get(wanted, {}).get("status") != "True":
            wrong.append(f"{name} is not {wanted}: {conditions.get(wanted, {}).get('message', 'nothing known yet')}")
        if item["kind"] == "Node":
            lines.append(f"{name:26} {item['status']['nodeInfo']['kubeletVersion']}")
            if item["spec"].get("unschedulable"):
                wrong.append(f"{name} is cordoned: kubectl uncordon {item['metadata']['name']}")
    pods = [item for item in items if item["kind"] == "Pod"]
    lines.append(f"pods                       {len(pods)}")
    return lines, wrong


def _memory(cluster: Cluster) -> int:
    """Proportional memory of every process in the node, containers included."""
    total = 0
    for pid in _inside({process.pid for process in marked(cluster.layout)}):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue  # it ended meanwhile
        total += sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    return total


def _inside(roots: set[int]) -> set[int]:
    """The node's processes: all whose line of parents reaches one that we started."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found: set[int] = set()
    for pid in parents:
        at = pid
        while at in parents and at not in roots:
            at = parents[at]
        if at in roots:
            found.add(pid)
    return found


def _leftovers(cluster: Cluster) -> list[str]:
    if host_state.linked():
        return ["a test cluster of another cache folder or user runs on this machine"]
    left = [f"wrong: process {process.pid} of an earlier cluster still runs" for process in marked(cluster.layout)]
    return left + [f"wrong: control group {path} is left" for path in host_state.cgroups()]
