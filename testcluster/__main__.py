"""The command line: scripts/cluster up|down|status|load-image|kubeconfig|logs."""

import argparse
import sys
from pathlib import Path

from testcluster.cluster import Cluster
from testcluster.errors import ClusterError, NotRunningError
from testcluster.layout import Layout
from testcluster.progress import Progress
from testcluster.status import report


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors are one line and exit code 1."""
    options = _parser().parse_args(arguments)
    layout = Layout.default()
    progress = Progress(times=layout.cache / "times.json", verbose=getattr(options, "verbose", False))
    try:
        return int(options.action(Cluster(layout, progress), options) or 0)
    except ClusterError as error:
        progress.say(f"cluster: {error}")
        return 1
    except KeyboardInterrupt:
        progress.say("cluster: interrupted; the next `up` or `down` cleans up what was half done")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/cluster", description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="make the cluster; the first time compiles for about 20 minutes")
    up.add_argument("--no-images", action="store_true", help="leave out the project's own images (etc/docker)")
    up.add_argument("--prepare-only", action="store_true", help="fill the cache and start nothing")
    up.add_argument("--verbose", action="store_true", help="print each phase of starting")
    up.set_defaults(action=_up)

    down = commands.add_parser("down", help="end the cluster and leave the machine as it was; the cache stays")
    down.set_defaults(action=lambda cluster, options: cluster.down())

    status = commands.add_parser("status", help="what runs and what is wrong; exit code 0 if all is well")
    status.set_defaults(action=_status)

    load = commands.add_parser("load-image", help="build images of etc/docker anew, or load an image archive")
    load.add_argument("images", nargs="*", metavar="NAME|ARCHIVE", help="names of etc/docker (default: all), or .tar files")
    load.set_defaults(action=_load)

    kubeconfig = commands.add_parser("kubeconfig", help="print the path of the administrator's kubeconfig")
    kubeconfig.set_defaults(action=_kubeconfig)

    logs = commands.add_parser("logs", help="print the log of a daemon, or list the logs there are")
    logs.add_argument("daemon", nargs="?", help="such as kubelet")
    logs.set_defaults(action=_logs)
    return parser


def _up(cluster: Cluster, options: argparse.Namespace) -> None:
    if options.prepare_only:
        cluster.prepare(images=not options.no_images)
    else:
        cluster.up(images=not options.no_images)
        _out(f"export KUBECONFIG={cluster.layout.kubeconfig}")
        _out(f"export PATH={cluster.binaries.path('kubectl').parent}:$PATH   # kubectl")


def _status(cluster: Cluster, options: argparse.Namespace) -> int:
    lines, healthy = report(cluster)
    _out("\n".join(lines))
    return 0 if healthy else 1


def _load(cluster: Cluster, options: argparse.Namespace) -> None:
    archives = [name for name in options.images if Path(name).is_file()]
    for name in archives:
        cluster.load_archive(Path(name))
    names = tuple(name for name in options.images if name not in archives)
    if names or not archives:
        cluster.load_built(names)


def _kubeconfig(cluster: Cluster, options: argparse.Namespace) -> None:
    if not cluster.layout.kubeconfig.exists():
        raise NotRunningError("the test cluster is not running: start it with `scripts/cluster up`")
    _out(str(cluster.layout.kubeconfig))


def _logs(cluster: Cluster, options: argparse.Namespace) -> None:
    logs = cluster.layout.logs
    if options.daemon is None:
        _out("\n".join(sorted(path.stem for path in logs.glob("*.log"))))
        return
    path = logs / f"{options.daemon}.log"
    if not path.exists():
        raise NotRunningError(f"no log of {options.daemon}: `scripts/cluster logs` lists those there are")
    with path.open(errors="replace") as file:
        for line in file:
            sys.stdout.write(line)


def _out(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
