"""Tests on a real Kubernetes with Knative: brought up once a run, a namespace for each test, nothing left behind.

KUBECONFIG or --kubeconfig names a cluster of your own to use instead; what it lacks skips the tests that need it. Without
one, `scripts/cluster up` runs first if it has not, and `down` at the end if it was us. A failed test leaves events,
objects and logs below results/cluster/.
"""

import os
import re
import shutil
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from testcluster.cluster import Cluster
from testcluster.errors import ClusterError, UnsupportedMachineError
from testcluster.layout import REPOSITORY, Layout
from testcluster.progress import Progress
from tests.cluster import leftovers
from tests.cluster.handle import ClusterUnderTest, eventually, users_own

_HERE = Path(__file__).parent
_RESULTS = REPOSITORY / "results" / "cluster"
_GONE_WITHIN = 60.0  # a Knative pod drains for half a minute before it goes

_cluster = pytest.StashKey[ClusterUnderTest]()
_unsupported = pytest.StashKey[str]()
_started_here = pytest.StashKey[bool]()
_report = pytest.StashKey[pytest.TestReport]()
_figures = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kubeconfig", help="run the cluster tests on this cluster of your own, in namespaces of theirs")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soak: long loops; deselected unless -m names it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "soak" in config.getoption("-m", default=""):
        return
    long = [item for item in items if _HERE in item.path.parents and item.get_closest_marker("soak")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_collection_finish(session: pytest.Session) -> None:
    # Not in a fixture: the first `up` takes longer than any test may.
    wanted = any("cluster" in getattr(item, "fixturenames", ()) for item in session.items if _HERE in item.path.parents)
    if not wanted or session.config.option.collectonly:
        return
    shutil.rmtree(_RESULTS, ignore_errors=True)
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        _bring_up(session.config)


def pytest_unconfigure(config: pytest.Config) -> None:
    cluster = config.stash.get(_cluster, None)
    if cluster and cluster.own and config.stash.get(_started_here, False) and not os.environ.get("EG_KNATIVE_KEEP_CLUSTER"):
        cluster.own.down()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_report] = report
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash.get(_figures, []):
        terminalreporter.section("figures of this cluster")
        for line in config.stash[_figures]:
            terminalreporter.line(line)


def _bring_up(config: pytest.Config) -> None:
    layout = Layout.default()
    own = Cluster(layout, Progress(times=layout.cache / "times.json"))
    named = config.getoption("--kubeconfig", default=None) or os.environ.get("KUBECONFIG")
    if named and Path(named).resolve() != layout.kubeconfig:
        config.stash[_cluster] = users_own(Path(named).resolve())
        return
    try:
        config.stash[_started_here] = not own.running
        own.up()
    except UnsupportedMachineError as error:
        if os.environ.get("CI"):
            pytest.exit(f"CI must run the cluster tests: {error}", returncode=1)
        config.stash[_unsupported] = str(error)
        return
    except ClusterError as error:
        pytest.exit(f"scripts/cluster up: {error}", returncode=1)
    config.stash[_cluster] = ClusterUnderTest(own.kubectl, own)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> ClusterUnderTest:
    """The cluster, up and running."""
    if _cluster not in request.config.stash:
        pytest.skip(request.config.stash[_unsupported])
    return request.config.stash[_cluster]


@pytest.fixture(scope="session")
def own_cluster(cluster: ClusterUnderTest) -> Cluster:
    """Our own cluster, for tests that stop its daemons or look at its files."""
    if cluster.own is None:
        pytest.skip("the daemons of a cluster of your own are not ours to touch")
    return cluster.own


@pytest.fixture(scope="session")
def knative(cluster: ClusterUnderTest) -> ClusterUnderTest:
    """A cluster with Knative Serving."""
    if not cluster.knative:
        pytest.skip("this cluster has no Knative Serving")
    return cluster


@pytest.fixture(scope="session")
def kernel_image(cluster: ClusterUnderTest) -> str:
    """The Python kernel image."""
    if cluster.kernel_image is None:
        pytest.skip("EG_KNATIVE_KERNEL_IMAGE does not say by which name this cluster pulls etc/docker/kernel-py")
    return cluster.kernel_image


@pytest.fixture(scope="session")
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a line about something measured at the end of the run, whether its test passes or not."""
    return request.config.stash.setdefault(_figures, []).append


@pytest.fixture
def namespace(cluster: ClusterUnderTest, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own. What the test leaves there fails it; what it was stays on disk when it fails."""
    name = f"egk-{re.sub('[^a-z0-9]+', '-', request.node.name.lower())[:40].strip('-')}-{uuid.uuid4().hex[:6]}"
    cluster.kubectl("create", "namespace", name)
    try:
        # Pods are refused until the controller manager has made it, which takes a while after a restart of the API server.
        account = ("get", "serviceaccount", "default", f"--namespace={name}", "--ignore-not-found", "--output=name")
        eventually(lambda: bool(cluster.kubectl(*account)), within=60, what="the namespace's default account")
        yield name
        failed = _report in request.node.stash
        left = [] if failed else leftovers.wait_for_none(cluster.kubectl, name, timeout=_GONE_WITHIN)
        if failed or left:
            folder = _RESULTS / request.node.name
            leftovers.keep(cluster.kubectl, name, folder)
            request.node.add_report_section("teardown", "cluster", f"events, objects and logs: {folder}")
        assert not left, f"the test left objects behind: {', '.join(left)}"
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false")
