"""/api/sessions, which EG's own handlers answer with 500 after the first POST."""

from __future__ import annotations

import asyncio

from tests.integration.gateway.driver import Driver


def test_a_session_from_beginning_to_end(gateway: Driver) -> None:
    body = {"path": "work/a.ipynb", "type": "notebook", "name": "a", "kernel": {"name": "python_pooled_local"}}
    made = gateway.call("POST", "/api/sessions", body)
    assert made.status == 201, made.text
    session, kernel_id = made.body, made.body["kernel"]["id"]
    assert made.headers["Location"] == f"/api/sessions/{session['id']}"
    assert session["notebook"] == {"path": "work/a.ipynb", "name": "a"}
    again = gateway.call("POST", "/api/sessions", body)
    assert (again.status, again.body["id"], again.body["kernel"]["id"]) == (201, session["id"], kernel_id)
    assert gateway.get(f"/api/sessions/{session['id']}").body["path"] == "work/a.ipynb"
    assert [found["id"] for found in gateway.get("/api/sessions").body] == [session["id"]]
    assert gateway.execute(kernel_id, "6 * 7") == "42"
    moved = gateway.call("PATCH", f"/api/sessions/{session['id']}", {"path": "b.ipynb"})
    assert (moved.status, moved.body["path"], moved.body["kernel"]["id"]) == (200, "b.ipynb", kernel_id)
    changed = gateway.call("PATCH", f"/api/sessions/{session['id']}", {"kernel": {"name": "python_pooled_local"}})
    assert changed.status == 200
    assert changed.body["kernel"]["id"] != kernel_id
    assert gateway.get(f"/api/kernels/{kernel_id}").status == 404
    assert gateway.call("DELETE", f"/api/sessions/{session['id']}").status == 204
    assert gateway.get("/api/sessions").body == []
    assert gateway.get("/api/kernels").body == []


def test_two_requests_for_one_path_make_one_kernel(gateway: Driver) -> None:
    async def together() -> list[str]:
        calls = [asyncio.to_thread(gateway.call, "POST", "/api/sessions", {"path": "same.ipynb"}) for _ in range(5)]
        return [answer.body["kernel"]["id"] for answer in await asyncio.gather(*calls)]

    assert len(set(asyncio.run(together()))) == 1
    assert len(gateway.get("/api/kernels").body) == 1


def test_a_session_ends_with_its_kernel(gateway: Driver) -> None:
    session = gateway.call("POST", "/api/sessions", {"path": "c.ipynb"}).body
    gateway.call("DELETE", f"/api/kernels/{session['kernel']['id']}")
    assert gateway.get(f"/api/sessions/{session['id']}").status == 404
    assert gateway.get("/api/sessions").body == []


def test_wrong_sessions(gateway: Driver) -> None:
    for body, field in (
        ({}, "path"),
        ({"path": 5}, "path"),
        ({"path": "x", "kernel": "python3"}, "kernel"),
        ({"path": "x", "kernel": {"name": 5}}, "kernel.name"),
        ({"path": "x", "kernel": {"name": "no-such-kernel"}}, "name"),
    ):
        answer = gateway.call("POST", "/api/sessions", body)
        assert answer.status in {400, 404}
        assert answer.body["field"] == field
    assert gateway.get("/api/kernels").body == []
