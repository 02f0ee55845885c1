"""Upstream's manifests are changed only where the list of changes says so."""

import copy
import json
from typing import Any

import pytest
import yaml

from testcluster import manifests
from testcluster.errors import ClusterError

QUEUE, WEBHOOK = "ko://knative.dev/serving/cmd/queue", "ko://knative.dev/serving/cmd/webhook"
IMAGES = {QUEUE: "dev.local/queue:1", WEBHOOK: "dev.local/webhook:1"}


def _adapt(*documents: dict[str, Any]) -> list[dict[str, Any]]:
    return manifests.adapt(documents, images=IMAGES, envoy="dev.local/envoy:1")


def _deployment(**container: Any) -> dict[str, Any]:
    spec = {"template": {"spec": {"containers": [{"name": "main", **container}]}}}
    return {"kind": "Deployment", "metadata": {"name": "webhook"}, "spec": spec}


def _container(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["spec"]["template"]["spec"]["containers"][0]
    return found


def test_images_are_replaced_wherever_they_are_named() -> None:
    setting = {
        "kind": "ConfigMap",
        "metadata": {"name": "config-deployment"},
        "data": {"queue-sidecar-image": QUEUE},
    }
    cache = {"kind": "Image", "metadata": {"name": "queue"}, "spec": {"image": QUEUE}}
    gateway = _deployment(image="docker.io/envoyproxy/envoy:v1.36-latest")
    found = _adapt(setting, cache, gateway, _deployment(image=WEBHOOK))
    assert found[0]["data"]["queue-sidecar-image"] == "dev.local/queue:1"
    assert found[1]["spec"]["image"] == "dev.local/queue:1"
    assert [_container(document)["image"] for document in found[2:]] == ["dev.local/envoy:1", "dev.local/webhook:1"]


def test_an_image_that_we_do_not_build_is_an_error_and_not_a_hanging_pod() -> None:
    with pytest.raises(ClusterError, match=r"want ko://elsewhere.*add it to testcluster/images\.py"):
        _adapt(_deployment(image="ko://elsewhere"))


def test_an_example_goes_with_its_checksum_and_other_annotations_stay() -> None:
    meta = {"name": "config-gc", "annotations": {"knative.dev/example-checksum": "1", "kept": "yes"}}
    found = _adapt({"kind": "ConfigMap", "metadata": meta, "data": {"_example": "text", "key": "value"}})[0]
    assert found["data"] == {"key": "value"}
    assert found["metadata"]["annotations"] == {"kept": "yes"}


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("config-network", "ingress-class", "kourier.ingress.networking.knative.dev"),
        ("config-deployment", "registries-skipping-tag-resolving", "dev.local"),
        ("config-leader-election", "lease-duration", "6s"),
    ],
)
def test_settings_are_made(name: str, key: str, value: str) -> None:
    assert _adapt({"kind": "ConfigMap", "metadata": {"name": name}})[0]["data"][key] == value


def test_deployments_ask_for_little_keep_their_limits_and_are_ready_soon() -> None:
    probe = {"httpGet": {"port": 1}, "initialDelaySeconds": 10, "periodSeconds": 5}
    resources = {"requests": {"cpu": "300m"}, "limits": {"cpu": "1"}}
    found = _container(
        _adapt(_deployment(resources=resources, readinessProbe=dict(probe), livenessProbe=dict(probe), lifecycle={}))[0]
    )
    assert found["resources"] == {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "1"}}
    assert found["readinessProbe"] == {"httpGet": {"port": 1}, "periodSeconds": 1, "failureThreshold": 30}
    assert found["livenessProbe"] == probe
    assert "lifecycle" not in found


def test_autoscalers_of_the_control_plane_are_left_out_and_the_rest_is_as_it_was() -> None:
    role = {"kind": "ClusterRole", "metadata": {"name": "r"}, "rules": [{"verbs": ["get"]}]}
    autoscaler = {"kind": "HorizontalPodAutoscaler", "metadata": {"name": "webhook"}}
    before = copy.deepcopy(role)
    assert _adapt(role, autoscaler) == [before]
    assert role == before


def test_what_others_need_comes_first() -> None:
    kinds = ["Deployment", "Service", "ConfigMap", "Namespace", "ServiceAccount", "CustomResourceDefinition"]
    found = manifests.ordered({"kind": kind, "metadata": {"name": "n"}} for kind in kinds)
    assert [document["kind"] for document in found] == [
        "CustomResourceDefinition",
        "Namespace",
        "ServiceAccount",
        "ConfigMap",
        "Service",
        "Deployment",
    ]
    definitions, rest = manifests.custom_resources(found)
    assert [document["kind"] for document in definitions] == ["CustomResourceDefinition"]
    assert len(rest) == 5


def test_the_stream_for_kubectl_is_one_list() -> None:
    body = json.loads(manifests.dump([{"kind": "A"}, {"kind": "B"}]))
    assert (body["kind"], [item["kind"] for item in body["items"]]) == ("List", ["A", "B"])


def test_coredns_gets_its_image_and_address() -> None:
    documents = [document for document in yaml.safe_load_all(manifests.coredns(image="dev.local/dns:1")) if document]
    kinds = {document["kind"]: document for document in documents}
    assert _container(kinds["Deployment"])["image"] == "dev.local/dns:1"
    assert kinds["Service"]["spec"]["clusterIP"].count(".") == 3
