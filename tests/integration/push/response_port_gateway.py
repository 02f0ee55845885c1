"""Stock Enterprise Gateway with nothing changed but its response port (with --stock, not even that).

Adds one resource: GET /test/registered, the number of launches that are registered on the response port.
"""

from __future__ import annotations

import sys

from enterprise_gateway.enterprisegatewayapp import EnterpriseGatewayApp
from tornado.web import RequestHandler

from eg_knative.gateway.response_manager import PushResponseManager, install


class RegisteredHandler(RequestHandler):
    def get(self) -> None:
        self.write({"registered": PushResponseManager.instance().launches.registered})


class ResponsePortApp(EnterpriseGatewayApp):  # type: ignore[misc]
    def init_configurables(self) -> None:
        super().init_configurables()
        install()

    def _create_request_handlers(self) -> list[tuple[object, ...]]:
        return [(r"/test/registered", RegisteredHandler), *super()._create_request_handlers()]


if __name__ == "__main__":
    application = EnterpriseGatewayApp if "--stock" in sys.argv else ResponsePortApp
    application.launch_instance([argument for argument in sys.argv[1:] if argument != "--stock"])
