from __future__ import annotations

import pytest

from eg_knative.substrates.local_environment import base_environment, is_forbidden, kernel_environment

GATEWAY = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/home/ada",
    "LANG": "C.UTF-8",
    "LC_TIME": "de_DE",
    "XDG_RUNTIME_DIR": "/run/user/1",
    "PYTHONPATH": "/gateway/code",
    "VIRTUAL_ENV": "/gateway/venv",
    "HTTPS_PROXY": "http://ada:password@proxy",
    "JUPYTER_TOKEN": "t",
    "EG_AUTH_TOKEN": "t",
    "EG_LIST_KERNELS": "True",
    "DB_PASSWORD": "p",
    "AWS_SECRET_ACCESS_KEY": "s",
    "SITE": "berlin",
}


def test_what_a_kernel_gets_whole() -> None:
    assert kernel_environment(gateway=GATEWAY, specification={}, executable="/opt/kernel/bin/python") == {
        "PATH": "/opt/kernel/bin:/usr/bin:/bin",
        "HOME": "/home/ada",
        "LANG": "C.UTF-8",
        "LC_TIME": "de_DE",
    }


def test_what_an_operator_adds_and_cannot_add() -> None:
    extra = ("SITE", "PYTHONPATH", "ABSENT", "EG_LIST_KERNELS", "JUPYTER_TOKEN", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY")
    assert base_environment(gateway=GATEWAY, extra=extra) == {
        "PATH": "/usr/bin:/bin",
        "HOME": "/home/ada",
        "LANG": "C.UTF-8",
        "LC_TIME": "de_DE",
        "SITE": "berlin",
        "PYTHONPATH": "/gateway/code",
    }


def test_a_kernelspec_lies_over_it_and_fetches_only_what_is_there() -> None:
    specification = {
        "HOME": "/data",
        "PATH": "/own:${PATH}",
        "A": "${LANG} $HOME",
        "B": "${EG_AUTH_TOKEN} ${DB_PASSWORD} $5 $$",
        "MY_TOKEN": "written by the operator",
    }
    assert kernel_environment(gateway=GATEWAY, specification=specification, executable="python3") == {
        "PATH": "/own:/usr/bin:/bin",
        "HOME": "/data",
        "LANG": "C.UTF-8",
        "LC_TIME": "de_DE",
        "A": "C.UTF-8 /home/ada",
        "B": "${EG_AUTH_TOKEN} ${DB_PASSWORD} $5 $",
        "MY_TOKEN": "written by the operator",
    }


def test_the_kernels_own_directory_comes_first_once() -> None:
    def path(gateway: dict[str, str], executable: str) -> str:
        return kernel_environment(gateway=gateway, specification={}, executable=executable)["PATH"]

    assert path({"PATH": "/a:/k:/b"}, "/k/python") == "/k:/a:/b"
    assert path({"PATH": "/a"}, "python") == "/a"
    assert path({}, "/k/python").startswith("/k:")


@pytest.mark.parametrize(
    "name",
    ["EG_X", "eg_x", "A_TOKEN", "TOKENS", "my_secret_thing", "PASSWORD", "PGPASSWD", "X_CREDENTIALS", "API_KEY"],
)
def test_names_that_are_never_inherited(name: str) -> None:
    assert is_forbidden(name)
    assert base_environment(gateway={name: "x"}, extra=[name]) == {}


def test_ordinary_names_are_not_forbidden() -> None:
    assert not any(map(is_forbidden, ("PATH", "LEG_X", "KEYBOARD", "MONKEY", "LANG")))
