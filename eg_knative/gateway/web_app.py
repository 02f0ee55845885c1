"""The routes, the tornado application with EG's settings and ours, and the HTTP server with its limits.

Every handler goes through `mended`, so that none is without the token check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enterprise_gateway.base.handlers import default_handlers as base_handlers
from enterprise_gateway.services.api.handlers import default_handlers as api_handlers
from jupyter_server.services.kernels.handlers import _kernel_id_regex
from tornado import httpserver

from eg_knative.gateway.channels import ChannelsHandler
from eg_knative.gateway.handlers import kernel_handlers, kernelspec_handlers
from eg_knative.gateway.incoming import HARD_BODY_LIMIT, BoundedApplication
from eg_knative.gateway.logs import log_request
from eg_knative.gateway.requests import NotFoundHandler, mended
from eg_knative.gateway.sessions_api import Sessions, session_handlers
from eg_knative.gateway.status import status_handlers

if TYPE_CHECKING:
    from eg_knative.gateway.app import EgKnativeApp
    from eg_knative.gateway.serving import Serving


def request_handlers(app: EgKnativeApp) -> list[tuple[Any, ...]]:
    """All routes: ours, EG's where they need no mending, and 404 for the rest. Every handler is a GatewayHandler."""
    routes: list[tuple[Any, ...]] = [
        *status_handlers,
        (rf"/api/kernels/{_kernel_id_regex}/channels", mended(ChannelsHandler)),
        *kernel_handlers,
        *kernelspec_handlers,
        *session_handlers,
    ]
    known = {pattern for pattern, *_ in routes}
    for pattern, handler, *rest in [*api_handlers, *base_handlers]:
        if pattern not in known and pattern != r"/(.*)":
            routes.append((pattern, mended(handler), *rest))
    routes.append((r"/(.*)", NotFoundHandler))
    root = app.base_url.rstrip("/")
    rooted = [(root + pattern, *rest) for pattern, *rest in routes]
    if app.authorized_origin:
        for route in rooted:
            app._EnterpriseGatewayApp__add_authorized_hostname_match(route)
    return rooted


def make_web_app(app: EgKnativeApp, *, serving: Serving) -> BoundedApplication:
    """EG's application settings, and ours."""
    return BoundedApplication(
        request_handlers(app),
        maximum_body_bytes=app.max_body_size,
        log_function=log_request,
        kernel_manager=app.kernel_manager,
        kernel_relays=serving.relays,
        session_manager=app.session_manager,
        contents_manager=None,
        kernel_spec_manager=app.kernel_spec_manager,
        kernel_spec_cache=app.kernel_spec_cache,
        eg_auth_token="",  # GatewayHandler checks it, in constant time and in more forms than EG's mixin
        eg_allow_credentials=app.allow_credentials,
        eg_allow_headers=app.allow_headers,
        eg_allow_methods=app.allow_methods,
        eg_allow_origin=app.allow_origin,
        eg_expose_headers=app.expose_headers,
        eg_max_age=app.max_age,
        eg_max_kernels=app.max_kernels,
        eg_inherited_envs=app.inherited_envs,
        eg_client_envs=app.client_envs,
        eg_kernel_headers=app.kernel_headers,
        eg_list_kernels=app.list_kernels,
        eg_authorized_users=app.authorized_users,
        eg_unauthorized_users=app.unauthorized_users,
        allow_origin=app.allow_origin,
        base_url=app.base_url,
        allow_remote_access=True,
        ws_ping_interval=app.ws_ping_interval * 1000,
        authorizer=app.authorizer_class(parent=app, log=app.log),
        egknative_token=app.auth_token,
        egknative_kernelspecs=serving.index,
        egknative_runtime=serving.runtime,
        egknative_metrics=serving.metrics,
        egknative_sessions=Sessions(app.kernel_manager),
        egknative_authenticate_prometheus=app.authenticate_prometheus,
        egknative_stopping=lambda: serving.stopping,
    )


def make_http_server(app: EgKnativeApp, web_app: BoundedApplication) -> httpserver.HTTPServer:
    """The server, with limits in time and size for every connection."""
    return httpserver.HTTPServer(
        web_app,
        xheaders=app.trust_xheaders,
        ssl_options=app._build_ssl_options(),
        idle_connection_timeout=app.idle_connection_timeout,
        body_timeout=app.body_timeout,
        max_body_size=HARD_BODY_LIMIT,  # BoundedApplication answers the smaller excess
        max_header_size=64 * 1024,
    )
