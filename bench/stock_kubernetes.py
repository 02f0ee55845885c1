"""`python -m bench.stock_kubernetes`: stock Enterprise Gateway on the test cluster, from POST to the first cell's result.

One kernel after the other, each with a pod of its own, images on the node. It brings the cluster up if it is down, and
leaves it up.
"""

import argparse
import statistics
import sys
import uuid

from testcluster.cluster import Cluster
from testcluster.errors import ClusterError
from testcluster.layout import Layout
from testcluster.progress import Progress
from tests.cluster import stock
from tests.cluster.handle import ClusterUnderTest


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.stock_kubernetes", description=__doc__)
    parser.add_argument("--samples", type=int, default=5, help="how many kernels (5)")
    options = parser.parse_args(arguments)
    try:
        launches = measure(samples=options.samples)
    except ClusterError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    figures = {
        "POST answered": [launch.posted for launch in launches],
        "first result": [launch.result for launch in launches],
    }
    for name, seconds in figures.items():
        low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
        print(f"stock Enterprise Gateway, {name}: {low:.2f} / {middle:.2f} / {high:.2f} s (min / p50 / max, n={len(seconds)})")
    return 0


def measure(*, samples: int) -> list[stock.Launch]:
    """Launch this many kernels through one gateway, after one that does not count."""
    layout = Layout.default()
    own = Cluster(layout, Progress(times=layout.cache / "times.json"))
    own.up()
    stock.load_images(own)
    cluster = ClusterUnderTest(own.kubectl, own)
    namespace = f"bench-{uuid.uuid4().hex[:6]}"
    cluster.kubectl("create", "namespace", namespace)
    try:
        with stock.gateway(cluster, namespace=namespace) as gateway:
            gateway.launch("print(1)")
            return [gateway.launch("print(1)") for _ in range(samples)]
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")


if __name__ == "__main__":
    sys.exit(main())
