"""Upstream's manifests, read from Go's module cache and changed in memory for one small node.

`upstream` reads, `adapt` changes; `adapt` is pure and knows nothing of files. Every change is here, with its reason:
whoever bumps a version looks through this list. What is not listed is as upstream ships it, so that the tests meet an
unmodified Knative.
"""

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

import yaml

from testcluster import pins
from testcluster.binaries import module_folder
from testcluster.errors import ClusterError
from testcluster.layout import DNS_ADDRESS, REGISTRY

Manifest = dict[str, Any]

# Autoscalers of the control plane need a metrics server that is not there.
_LEFT_OUT = {"HorizontalPodAutoscaler"}
_SETTINGS: Mapping[str, Mapping[str, str]] = {
    "config-deployment": {"registries-skipping-tag-resolving": REGISTRY},
    "config-network": {"ingress-class": "kourier.ingress.networking.knative.dev"},
    # A killed component blocks its successor for a whole lease, a minute by default; the fault levers kill often.
    "config-leader-election": {"lease-duration": "6s", "renew-deadline": "4s", "retry-period": "1s"},
}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the custom resources are half a megabyte
_ENVOY = "docker.io/envoyproxy/envoy:"


def upstream() -> list[Manifest]:
    """All documents of Serving, of the modules it shares with others, and of Kourier, custom resources first."""
    serving, kourier = pins.go_module("serving"), pins.go_module("kourier")
    core = module_folder(serving, "knative.dev/serving") / "config" / "core"
    files = [
        *core.rglob("*.yaml"),
        *(module_folder(serving, "knative.dev/networking") / "config").glob("*.yaml"),
        *(module_folder(serving, "knative.dev/caching") / "config").glob("image.yaml"),
        *(module_folder(kourier, "knative.dev/net-kourier") / "config").glob("*.yaml"),
    ]
    return ordered(_unique(document for file in files for document in _documents(file.read_text())))


def adapt(documents: Iterable[Manifest], *, images: Mapping[str, str], envoy: str) -> list[Manifest]:
    """The documents as this cluster applies them."""
    kept = [copy.deepcopy(document) for document in documents if document["kind"] not in _LEFT_OUT]
    for document in kept:
        _use_local_images(document, images=images, envoy=envoy)
        if document["kind"] == "ConfigMap":
            _configure(document)
        if document["kind"] == "Deployment":
            _fit(document)
    return kept


def custom_resources(documents: Iterable[Manifest]) -> tuple[list[Manifest], list[Manifest]]:
    """Custom resource definitions, then everything else: the rest is refused until they are established."""
    definitions: list[Manifest] = []
    rest: list[Manifest] = []
    for document in documents:
        (definitions if document["kind"] == "CustomResourceDefinition" else rest).append(document)
    return definitions, rest


def coredns(*, image: str) -> str:
    """Our own manifest of CoreDNS; upstream's module has none."""
    text = (Path(__file__).parent / "coredns.yaml").read_text()
    return Template(text).substitute(IMAGE=image, ADDRESS=DNS_ADDRESS)


def dump(documents: Iterable[Manifest]) -> str:
    """The documents as one list for kubectl."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})


def ordered(documents: Iterable[Manifest]) -> list[Manifest]:
    """Namespaces before what lies in them, accounts before their bindings, settings before their readers."""
    first = ("CustomResourceDefinition", "Namespace", "ServiceAccount", "ClusterRole", "ConfigMap", "Secret")
    rank = {kind: place for place, kind in enumerate(first)}

    def place(document: Manifest) -> tuple[int, str, str]:
        late = 99 if document["kind"] == "Deployment" else 50
        return rank.get(document["kind"], late), document["kind"], document["metadata"]["name"]

    return sorted(documents, key=place)


def _use_local_images(node: Any, *, images: Mapping[str, str], envoy: str) -> None:
    """Replace every image, wherever it is named; one that we do not have is an error now and not a hanging pod."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for place, value in list(items):
        if isinstance(value, str) and value.startswith("ko://"):
            if value not in images:
                raise ClusterError(f"upstream's manifests want {value}, which nobody builds: add it to testcluster/images.py")
            node[place] = images[value]
        elif isinstance(value, str) and value.startswith(_ENVOY):
            node[place] = envoy
        else:
            _use_local_images(value, images=images, envoy=envoy)


def _configure(document: Manifest) -> None:
    # Upstream guards the example by a checksum; both go together, or the webhook refuses the map.
    data = document.setdefault("data", {})
    if data.pop("_example", None) is not None:
        document["metadata"].get("annotations", {}).pop("knative.dev/example-checksum", None)
    data.update(_SETTINGS.get(document["metadata"]["name"], {}))


def _fit(document: Manifest) -> None:
    """Ask for little, be ready soon. Upstream asks for 1.5 CPU in all: on two cores kernels would stay Pending."""
    for container in document["spec"]["template"]["spec"]["containers"]:
        container.setdefault("resources", {})["requests"] = {"cpu": "10m", "memory": "32Mi"}
        probe = container.get("readinessProbe")
        if probe:
            probe.pop("initialDelaySeconds", None)
            probe["periodSeconds"] = 1
            probe["failureThreshold"] = 30
        # Kourier's hook calls curl, which an image of Envoy alone does not have.
        container.pop("lifecycle", None)


def _unique(documents: Iterable[Manifest]) -> list[Manifest]:
    """One of each object: the modules share a few, and the first one read is Serving's own."""
    seen: dict[tuple[str, str, str], Manifest] = {}
    for document in documents:
        meta = document["metadata"]
        seen.setdefault((document["kind"], meta.get("namespace", ""), meta["name"]), document)
    return list(seen.values())


def _documents(text: str) -> list[Manifest]:
    return [document for document in yaml.load_all(text, Loader=_LOADER) if document]
