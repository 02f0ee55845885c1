"""Stock Enterprise Gateway's own Kubernetes kernel starts on this cluster and computes."""

from collections.abc import Callable

import pytest

from testcluster.cluster import Cluster
from tests.cluster import stock
from tests.cluster.handle import ClusterUnderTest


# The first run builds two images.
@pytest.mark.timeout(900)
def test_a_stock_kernel_starts_and_computes(
    own_cluster: Cluster, cluster: ClusterUnderTest, namespace: str, figure: Callable[[str], None]
) -> None:
    stock.load_images(own_cluster)
    with stock.gateway(cluster, namespace=namespace) as gateway:
        launch = gateway.launch("print(6 * 7)")
    assert launch.text == "42\n"
    figure(f"stock Enterprise Gateway: POST {launch.posted:.2f} s, first cell's result {launch.result:.2f} s")
