"""One kernel.json, checked: what is understood, and how a mistake is told."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from eg_knative.errors import ConfigurationError
from eg_knative.specification import KernelSpecification, PoolConfiguration, parse_specification

DOCUMENT: dict[str, Any] = {
    "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}", "{resource_dir}/x"],
    "display_name": "Python (pooled)",
    "language": "python",
    "interrupt_mode": "message",
    "env": {"A": "1"},
    "metadata": {
        "process_proxy": {
            "class_name": "eg_knative.processproxies.pooled.PooledProcessProxy",
            "config": {
                "authorized_users": "alice",
                "pool": {"floor": 1, "ceiling": 3, "pre_import": ["numpy"], "import_time_variables": ["OMP_NUM_THREADS"]},
                "auto_restart": "never",
                "environment": {"allow": ["AWS_*"]},
            },
        }
    },
}


def parse(document: dict[str, Any]) -> KernelSpecification:
    return parse_specification(name="spec", document=document, resource_dir="/specs/spec", python="/env/bin/python")


def changed(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    *parents, last = path.split("/")
    target = document
    for parent in parents:
        target = target[parent]
    target[last] = value
    return document


def test_a_whole_kernelspec() -> None:
    assert parse(DOCUMENT) == KernelSpecification(
        name="spec",
        display_name="Python (pooled)",
        language="python",
        argv=("/env/bin/python", "-m", "ipykernel_launcher", "-f", "{connection_file}", "/specs/spec/x"),
        env={"A": "1"},
        interrupt_mode="message",
        substrate="local",
        pool=PoolConfiguration(floor=1, ceiling=3, pre_import=("numpy",), import_time_variables=("OMP_NUM_THREADS",)),
        auto_restart="never",
        environment_allow=("AWS_*",),
    )


def test_an_argv_alone_is_enough() -> None:
    specification = parse({"argv": ["deno", "jupyter", "--kernel", "--conn", "{connection_file}"]})
    assert (specification.display_name, specification.pool, specification.start) == ("spec", PoolConfiguration(), "auto")


CONFIG = "metadata/process_proxy/config"


@pytest.mark.parametrize(
    ("path", "value", "field", "words"),
    [
        ("argv", [], "argv", "list of strings"),
        ("argv", "python", "argv", "list of strings"),
        ("argv", ["python"], "argv", "{connection_file}"),
        ("argv", ["python", 7, "{connection_file}"], "argv", "list of strings"),
        ("argv", ["py\0thon", "{connection_file}"], "argv", "list of strings"),
        ("env", {"A": 1}, "env.A", "quotes"),
        ("metadata", [], "metadata", "object"),
        ("interrupt_mode", "shout", "interrupt_mode", "signal, message"),
        (f"{CONFIG}/pol", {}, "metadata.process_proxy.config.pol", "Did you mean pool?"),
        (f"{CONFIG}/pool/flor", 1, "metadata.process_proxy.config.pool.flor", "Did you mean floor?"),
        (f"{CONFIG}/pool/floor", 4, "metadata.process_proxy.config.pool.floor", "ceiling (3)"),
        (f"{CONFIG}/pool/floor", -1, "metadata.process_proxy.config.pool.floor", "whole number"),
        (f"{CONFIG}/pool/floor", True, "metadata.process_proxy.config.pool.floor", "whole number"),
        (f"{CONFIG}/pool/maximum_age_seconds", 0, "metadata.process_proxy.config.pool.maximum_age_seconds", "above 0"),
        (f"{CONFIG}/zygote", "yes", "metadata.process_proxy.config.zygote", "true or false"),
        (f"{CONFIG}/launch_timeout_seconds", float("nan"), "metadata.process_proxy.config.launch_timeout_seconds", "above 0"),
    ],
)
def test_a_mistake_names_its_field_and_the_remedy(path: str, value: Any, field: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(changed(path, value))
    assert caught.value.field == field
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("path", "value", "same"),
    [
        ("display_name", "Other", True),
        (f"{CONFIG}/pool/floor", 2, True),
        (f"{CONFIG}/environment", {"allow": []}, True),
        ("env", {"A": "2"}, False),
        (f"{CONFIG}/pool/pre_import", ["pandas"], False),
        (f"{CONFIG}/auto_restart", "always", False),
    ],
)
def test_the_digest_changes_with_what_a_running_member_was_started_with(path: str, value: Any, same: bool) -> None:
    assert (parse(changed(path, value)).digest == parse(DOCUMENT).digest) is same
