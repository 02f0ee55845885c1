"""How a gateway begins and ends: ports, tokens, signals, and the next gateway that takes over its kernels."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.integration.gateway.driver import Driver, wait_until


def run_once(gateway: Driver, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Start the command, expecting it to end by itself."""
    gateway.directory.mkdir(parents=True, exist_ok=True)
    environment = {**gateway.environment(), **env}
    environment = {key: value for key, value in environment.items() if value}
    command = [*gateway.command(), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, cwd=gateway.directory)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_next_gateway_adopts_kernels_with_their_variables(new_gateway: Callable[..., Driver], how: signal.Signals) -> None:
    gateway = new_gateway(pool_size=1)
    gateway.start()
    kernel_id = gateway.launch(KERNEL_USERNAME="alice")
    gateway.execute(kernel_id, "answer = 6 * 7")
    before = gateway.get(f"/api/egknative/kernels/{kernel_id}").body
    gateway.stop(how)
    gateway.start()
    assert [kernel["id"] for kernel in gateway.get("/api/kernels").body] == [kernel_id]
    after = gateway.get(f"/api/egknative/kernels/{kernel_id}").body
    assert (after["boot_id"], after["username"], after["name"]) == (before["boot_id"], "alice", "python_pooled_local")
    assert after["launch"]["adopted"] is True
    assert gateway.execute(kernel_id, "answer") == "42"
    assert gateway.call("POST", f"/api/kernels/{kernel_id}/restart").status == 200
    assert "NameError" in gateway.execute(kernel_id, "answer")
    assert gateway.call("DELETE", f"/api/kernels/{kernel_id}").status == 204
    assert kernel_id not in str(gateway.get("/api/kernels").body)


def test_limits_count_adopted_kernels(new_gateway: Callable[..., Driver]) -> None:
    gateway = new_gateway(EG_MAX_KERNELS="2", EG_MAX_KERNELS_PER_USER="1")
    gateway.start()
    gateway.launch(KERNEL_USERNAME="alice")
    gateway.stop(signal.SIGTERM)
    gateway.start()
    answer = gateway.call("POST", "/api/kernels", {"env": {"KERNEL_USERNAME": "alice"}})
    assert (answer.status, answer.body["reason"]) == (403, "kernel_limit_per_user")
    gateway.launch(KERNEL_USERNAME="bob")
    answer = gateway.call("POST", "/api/kernels", {"env": {"KERNEL_USERNAME": "carol"}})
    assert (answer.status, answer.body["reason"]) == (403, "kernel_limit")
    assert len(gateway.get("/api/kernels").body) == 2


def test_ctrl_c_leaves_nothing(new_gateway: Callable[..., Driver]) -> None:
    gateway = new_gateway(pool_size=2)
    gateway.start()
    gateway.launch()
    gateway.execute(gateway.launch(), "import subprocess; child = subprocess.Popen(['sleep', '600'])")
    gateway.call("POST", "/api/kernels", {"name": "python3"})
    family = gateway.family()
    began = time.monotonic()
    assert gateway.stop(signal.SIGINT) == 0
    assert time.monotonic() - began < 10
    _, alive = psutil.wait_procs(family, timeout=5)
    assert [process.cmdline() for process in alive] == []
    assert list((gateway.run_directory / "members").iterdir()) == []


def test_sigterm_ends_foreign_kernels_alone(new_gateway: Callable[..., Driver]) -> None:
    gateway = new_gateway(pool_size=1)
    gateway.start()
    ours = gateway.launch()
    gateway.call("POST", "/api/kernels", {"name": "python3"})
    assert gateway.stop(signal.SIGTERM) == 0
    gateway.start()
    assert [kernel["id"] for kernel in gateway.get("/api/kernels").body] == [ours]


def test_a_kernel_in_the_middle_of_a_cell_is_ended_too(new_gateway: Callable[..., Driver]) -> None:
    gateway = new_gateway(pool_size=1)
    gateway.start()
    kernel_id = gateway.launch()
    with pytest.raises(TimeoutError):
        gateway.execute(kernel_id, "while True: pass", timeout=1)
    family = gateway.family()
    assert gateway.stop(signal.SIGINT) == 0
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []


def test_a_port_that_is_taken(new_gateway: Callable[..., Driver]) -> None:
    first, second = new_gateway(name="first", pool_size=0), new_gateway(name="second", pool_size=0)
    first.start()
    second.port = first.port
    ended = run_once(second)
    assert ended.returncode == 1
    assert f"Port {first.port} is taken" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_run_directory_that_is_in_use(new_gateway: Callable[..., Driver]) -> None:
    first, second = new_gateway(name="first", pool_size=0), new_gateway(name="second", pool_size=0)
    first.start()
    second.run_directory = first.run_directory
    ended = run_once(second)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert str(first.run_directory) in ended.stderr
    assert first.get("/api/kernels").status == 200


def test_without_a_token_it_listens_on_loopback_alone(new_gateway: Callable[..., Driver]) -> None:
    gateway = new_gateway(pool_size=0)
    ended = run_once(gateway, "--ip=0.0.0.0", EG_AUTH_TOKEN="")
    assert ended.returncode == 1
    assert "EG_AUTH_TOKEN" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_token_is_made_and_shown_on_loopback(new_gateway: Callable[..., Driver]) -> None:
    gateway = new_gateway(pool_size=0, EG_AUTH_TOKEN="")
    gateway.start()
    shown = gateway.text_of_log().split("?token=")[1].split()[0]
    assert len(shown) == 48
    assert gateway.get("/api/kernels").status == 401
    gateway.token = shown
    assert gateway.get("/api/kernels").status == 200
    assert gateway.text_of_log().count(shown) == 1


@pytest.mark.parametrize(
    ("options", "env", "word"),
    [
        ((), {"EG_KNATIVE_POOL_SIZE": "many", "POOL": ""}, "EG_KNATIVE_POOL_SIZE"),
        (("--pool-size=-1",), {}, "pool_size"),
        (("--port=notaport",), {}, "port"),
        (("--ip=203.0.113.1",), {}, "Cannot listen on"),
    ],
)
def test_wrong_options(new_gateway: Callable[..., Driver], options: tuple[str, ...], env: dict[str, str], word: str) -> None:
    gateway = new_gateway(pool_size=0)
    command = [part for part in gateway.command() if not part.startswith("--pool-size")]
    gateway.directory.mkdir(parents=True, exist_ok=True)
    ended = subprocess.run(
        [*command, *options],
        env={**gateway.environment(), **env},
        capture_output=True,
        text=True,
        timeout=30,
        cwd=gateway.directory,
    )
    assert ended.returncode == 1
    assert word in ended.stderr
    assert "Traceback" not in ended.stderr


def test_versions_help_and_configuration(tmp_path: Path) -> None:
    program = str(Path(sys.executable).parent / "jupyter-egknative")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path)}

    def run(*options: str) -> str:
        ended = subprocess.run([program, *options], env=env, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert run("--version").strip()[0].isdigit()
    assert "--pool-size" in run("--help")
    assert "EgKnativeApp.launch_timeout" in run("--help-all")
    run("--generate-config", "-y")
    assert "c.EgKnativeApp.pool_size" in (tmp_path / "jupyter_egknative_config.py").read_text()


def test_options_of_enterprise_gateways_own_file(new_gateway: Callable[..., Driver], tmp_path: Path) -> None:
    text = "c.EnterpriseGatewayApp.max_kernels = 0\nc.EgKnativeConfiguration.pool_size = 0\n"
    (tmp_path / "jupyter_enterprise_gateway_config.py").write_text(text)
    gateway = new_gateway(JUPYTER_CONFIG_DIR=str(tmp_path))
    gateway.start()
    assert gateway.call("POST", "/api/kernels").body["reason"] == "kernel_limit"


def test_it_is_ready_before_its_pool_is(new_gateway: Callable[..., Driver]) -> None:
    gateway = new_gateway(pool_size=4)
    gateway.start()
    assert gateway.call("GET", "/healthz", headers={}).body == {"status": "ok"}
    assert gateway.call("GET", "/readyz", headers={}).body == {"status": "ready"}
    wait_until(lambda: gateway.pool()["ready"] == 4)
