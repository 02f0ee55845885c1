"""`jupyter egknative`: Enterprise Gateway's application, mended. Same options, same environment variables, and a few of its
own.

It is where everything is put together (kernelspecs, runtime, kernels, handlers, signals) and taken apart again. Ctrl-C ends
the kernels, as Jupyter does; SIGTERM detaches, so that the next gateway adopts them. It does not decide anything about a
single kernel.
"""

from __future__ import annotations

import asyncio
import errno
import getpass
import os
import socket
import sys
from importlib import metadata
from typing import ClassVar

from enterprise_gateway import enterprisegatewayapp as eg
from jupyter_core.application import JupyterApp, NoStart
from jupyter_core.paths import jupyter_runtime_dir
from tornado import netutil
from traitlets import Bool, Float, Integer, Type, Unicode, default

from eg_knative.errors import ConfigurationError
from eg_knative.gateway import token
from eg_knative.gateway.incoming import HARD_BODY_LIMIT
from eg_knative.gateway.kernels import GatewayKernels
from eg_knative.gateway.kernelspecs import IndexedKernelSpecCache, IndexedKernelSpecManager
from eg_knative.gateway.logs import install_filter
from eg_knative.gateway.serving import Serving
from eg_knative.processproxies.configuration import EgKnativeConfiguration, boolean, from_environment
from eg_knative.settings import Settings


class EgKnativeApp(EgKnativeConfiguration, eg.EnterpriseGatewayApp):  # type: ignore[misc]  # EG has no types
    """Enterprise Gateway with warm kernels."""

    name = "jupyter-egknative"
    version = Unicode(help="The version of this project.")
    description = """
        Jupyter Enterprise Gateway with kernels that are ready before they are asked for.

        Takes all options of `jupyter enterprisegateway` (as EgKnativeApp.… or EnterpriseGatewayApp.…) and reads its
        configuration file and environment variables. Ctrl-C shuts kernels down; SIGTERM leaves them to the next gateway.
    """
    examples = """
        jupyter egknative --port=8888 --pool-size=4
        EG_AUTH_TOKEN=… jupyter egknative --ip=0.0.0.0
    """

    aliases: ClassVar = {
        **eg.aliases,
        "ip": "EgKnativeApp.ip",
        "port": "EgKnativeApp.port",
        "port_retries": "EgKnativeApp.port_retries",
        "pool-size": "EgKnativeApp.pool_size",
        "pool-total": "EgKnativeApp.pool_total",
        "run-directory": "EgKnativeApp.run_directory",
        "launch-timeout": "EgKnativeApp.launch_timeout",
    }
    classes: ClassVar = [*eg.EnterpriseGatewayApp.classes, IndexedKernelSpecManager, GatewayKernels]

    authenticate_prometheus = Bool(
        True, config=True, help="Whether GET /metrics asks for the token. (EG_KNATIVE_AUTHENTICATE_PROMETHEUS env var)"
    )
    idle_connection_timeout = Float(
        60.0,
        min=1.0,
        config=True,
        help="Seconds that a connection may take for its request's headers, or stay idle between requests.",
    )
    body_timeout = Float(30.0, min=1.0, config=True, help="Seconds that a request's body may take to arrive.")
    max_body_size = Integer(
        4 * 1024**2, min=1024, max=HARD_BODY_LIMIT, config=True, help="Bytes of a request's body; more is answered with 413."
    )
    kernel_manager_class = Type(
        default_value=GatewayKernels, klass=GatewayKernels, config=True, help="The kernel manager: GatewayKernels or a subclass."
    )
    kernel_spec_manager_class = Type(
        default_value=IndexedKernelSpecManager,
        klass="jupyter_client.kernelspec.KernelSpecManager",
        config=True,
        help="Where kernelspecs come from: a subclass of jupyter_client's KernelSpecManager.",
    )
    kernel_spec_cache_class = Type(
        default_value=IndexedKernelSpecCache,
        klass="enterprise_gateway.services.kernelspecs.KernelSpecCache",
        config=True,
        help="What EG's own handlers ask for kernelspecs.",
    )

    @default("version")
    def _version_default(self) -> str:
        return metadata.version("eg-knative")

    @default("authenticate_prometheus")
    def _authenticate_prometheus_default(self) -> bool:
        return bool(from_environment("EG_KNATIVE_AUTHENTICATE_PROMETHEUS", True, boolean))

    @default("port_retries")
    def _port_retries_default(self) -> int:
        # EG takes another of 50 ports without asking, and clients do not find it.
        return int(from_environment("EG_PORT_RETRIES", from_environment("KG_PORT_RETRIES", 0, int), int))

    @default("list_kernels")
    def _list_kernels_default(self) -> bool:
        # Gateway clients poll the list; what is not in it they take for culled.
        return bool(from_environment("EG_LIST_KERNELS", from_environment("KG_LIST_KERNELS", True, boolean), boolean))

    @default("default_kernel_name")
    def _default_kernel_name_default(self) -> str:
        return str(from_environment("EG_DEFAULT_KERNEL_NAME", from_environment("KG_DEFAULT_KERNEL_NAME", "python_pooled_local")))

    @default("run_directory")
    def _run_directory_default(self) -> str:
        fallback = os.path.join(jupyter_runtime_dir(), f"egknative-{self.port}")
        return str(from_environment("EG_KNATIVE_RUN_DIRECTORY", fallback))

    @default("unauthorized_users")
    def _unauthorized_users_default(self) -> set[str]:
        # Refusing the name root protects a gateway that runs as root and impersonates its users. Without impersonation every
        # kernel runs as the gateway's own user, whatever name is sent; then a gateway that runs as root would refuse all who
        # send no name.
        fallback = "" if getpass.getuser() == "root" and not self.impersonation_enabled else "root"
        return {name for name in os.environ.get("EG_UNAUTHORIZED_USERS", fallback).split(",") if name}

    auth_token: str
    config_file_name: str
    port: int
    token_made: bool
    settings_of_runtime: Settings
    sockets: list[socket.socket]

    def initialize(self, argv: list[str] | None = None) -> None:
        """Read options, bind the port, build everything that needs no event loop.

        Raises NoStart after --generate-config; ends the process with 1 and one line when an option or the port is wrong.
        """
        JupyterApp.initialize(self, argv)
        if self.generate_config:
            self.write_default_config()
            raise NoStart()
        try:
            self.auth_token, self.token_made = token.settle_token(self.auth_token, host=self.ip)
            self.settings_of_runtime = self.settings()
            self.sockets = self._bind()
        except ConfigurationError as error:
            self.log.critical(error.message)
            self.exit(1)
        self._share_log()
        self.init_configurables()

    def _share_log(self) -> None:
        """One format, one stream and one filter for the application's own lines and for those of every library."""
        root = self.log.root
        self.log.propagate = False
        root.handlers = list(self.log.handlers)
        root.setLevel(self.log_level)
        install_filter(root, token=self.auth_token)

    def load_config_file(self, suppress_errors: bool | None = None) -> None:
        """Enterprise Gateway's configuration file first, ours over it."""
        own = self.config_file_name
        if not self.config_file:
            self.config_file_name = "jupyter_enterprise_gateway_config"
            super().load_config_file(suppress_errors=suppress_errors)
            self.config_file_name = own
        super().load_config_file(suppress_errors=suppress_errors)

    def _bind(self) -> list[socket.socket]:
        """The listening sockets: the first of 1 + port_retries ports that is free. Raises ConfigurationError."""
        for port in range(self.port, self.port + self.port_retries + 1):
            try:
                sockets = netutil.bind_sockets(port, self.ip or None, backlog=1024)
            except OSError as error:
                failure = error
                if error.errno != errno.EADDRINUSE:
                    break
                continue
            self.port = sockets[0].getsockname()[1]
            return sockets
        where = f"{self.ip or '*'}:{self.port}"
        if failure.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"Port {self.port} is taken: another program listens on {where}. Stop it, or give another with --port.",
                field="port",
            ) from failure
        raise ConfigurationError(
            f"Cannot listen on {where}: {failure.strerror}. Check --ip and --port.", field="port"
        ) from failure

    def start(self) -> None:
        """Serve until Ctrl-C or SIGTERM."""
        loop = asyncio.get_event_loop()
        try:
            loop.run_until_complete(serve(self))
        except ConfigurationError as error:
            self.log.critical(error.message)
            self.exit(1)

    @property
    def url(self) -> str:
        """Where the gateway is, without the token."""
        host = self.ip if self.ip not in {"", "0.0.0.0", "::"} else socket.gethostname()
        host = f"[{host}]" if ":" in host else host
        return f"http{'s' if self.certfile else ''}://{host}:{self.port}{self.base_url.rstrip('/')}/"

    def announce(self) -> None:
        """Say where the gateway is. The token is shown once, when it was made here; standard error and not the log."""
        self.log.info("eg-knative %s is available at %s", self.version, self.url)
        if self.token_made:
            print(  # noqa: T201  # the log redacts the token, as it should
                "\n    No token was given (EG_AUTH_TOKEN), so one was made. Use this address:\n"
                f"        {self.url}?token={self.auth_token}\n",
                file=sys.stderr,
                flush=True,
            )


async def serve(app: EgKnativeApp) -> None:
    """Run an initialised application once, on the running loop."""
    await Serving(app).run()
