"""Shows the metrics to Prometheus: a small HTTP server in a thread of its own, which never touches the event loop."""

from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from headrace_server.errors import CannotStart


class MetricsEndpoint:
    """`http://host:port/metrics` while it is open."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        """Listen at once; 0 lets the system choose the port.  Raises CannotStart when it is not to be had."""
        self._server: WSGIServer
        self._thread: Thread
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise CannotStart(
                f"metrics cannot be served on port {port} of {host}: {error.strerror}. "
                "Choose another with telemetry.metrics_port, or -1 for none"
            ) from error
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop listening; takes up to half a second."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
