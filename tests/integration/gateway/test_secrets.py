"""Nothing secret gets into a log, at any level, or into an answer."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable

from tests.integration.gateway.driver import Driver, wait_until

KEY = "import json, ipykernel.kernelapp as k; print(k.IPKernelApp.instance().session.key.decode())"


def test_the_whole_log_at_debug(new_gateway: Callable[..., Driver]) -> None:
    options = ["--debug", "--EgKnativeApp.client_envs=['CLIENT_SECRET']", "--EgKnativeApp.inherited_envs=['INHERITED_SECRET']"]
    secrets = {name: f"{name.lower()}-{uuid.uuid4().hex}" for name in ("KERNEL_SECRET", "CLIENT_SECRET", "DROPPED_SECRET")}
    inherited = f"inherited-{uuid.uuid4().hex}"
    gateway = new_gateway(
        options=options, INHERITED_SECRET=inherited, EG_SENSITIVE_ENV_KEYS="nothing", EG_KERNEL_HEADERS="X-Secret"
    )
    gateway.start()
    header = f"header-{uuid.uuid4().hex}"
    headers = {"Authorization": f"token {gateway.token}", "X-Secret": header}
    keys = []
    for name in ("python_pooled_local", "python3"):
        kernel_id = gateway.call("POST", "/api/kernels", {"name": name, "env": secrets}, headers=headers).body["id"]
        keys.append(gateway.execute(kernel_id, KEY))
        gateway.call("POST", f"/api/kernels/{kernel_id}/interrupt")
        gateway.call("POST", f"/api/kernels/{kernel_id}/restart")
        wait_until(lambda kernel_id=kernel_id: gateway.execute(kernel_id, "1") == "1")  # type: ignore[misc]
        gateway.call("DELETE", f"/api/kernels/{kernel_id}")
    gateway.call("GET", f"/api/kernels?token={gateway.token}", headers={})
    gateway.call("GET", f"/no/such/path?a=b&token={gateway.token}", headers={})
    body = f'{{"env": {{"KERNEL_SECRET": "{secrets["KERNEL_SECRET"]}"}}'  # not JSON: EG prints such a body
    gateway.call("POST", "/api/kernels", raw=body.encode())
    gateway.call("POST", "/api/kernels", {"name": "no-such-kernel", "env": secrets})
    gateway.call("POST", "/api/kernels", {"env": {**secrets, "KERNEL_ID": "wrong"}})
    answers = [gateway.get(path).text for path in ("/api/egknative/pools", "/metrics", "/api/kernels", "/healthz", "/readyz")]
    token = gateway.token
    gateway.close()
    log = gateway.text_of_log()
    assert "[D " in log
    assert len(keys) == 2
    assert all(len(key) >= 32 for key in keys)
    for secret in (*secrets.values(), inherited, header, token, *keys):
        assert secret not in log
        assert not any(secret in answer for answer in answers)
    for path in gateway.run_directory.rglob("*.log"):
        text = path.read_text(errors="replace")
        assert not any(secret in text for secret in (*secrets.values(), token, *keys)), path.name


def test_answers_about_a_kernel_hold_no_secret(gateway: Driver) -> None:
    kernel_id = gateway.launch(KERNEL_SECRET="shown-to-nobody")
    key = gateway.execute(kernel_id, KEY)
    for path in (f"/api/egknative/kernels/{kernel_id}", f"/api/kernels/{kernel_id}", "/api/egknative/pools", "/metrics"):
        text = gateway.get(path).text
        assert "shown-to-nobody" not in text
        assert key not in text
        assert gateway.token not in text


def test_private_files_stay_private(gateway: Driver) -> None:
    gateway.launch()
    for path in [gateway.run_directory, *gateway.run_directory.rglob("*")]:
        if not path.is_symlink():
            assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0, path
    assert json.dumps(str(gateway.run_directory))
