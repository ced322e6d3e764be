"""A collector of OTLP over HTTP (opentelemetry-proto, docs/specification.md): ``python -m tests.otlp_collector``.

No collector proper can be had from PyPI, apt or npm, so this process speaks the protocol with the protocol's own messages
(``opentelemetry-proto``). It prints its port, and then a line of JSON for each span and each point of a metric.
"""

from __future__ import annotations

import gzip
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

KINDS = {
    "/v1/traces": (ExportTraceServiceRequest, ExportTraceServiceResponse),
    "/v1/metrics": (ExportMetricsServiceRequest, ExportMetricsServiceResponse),
}


class Collector(BaseHTTPRequestHandler):
    """Take what is sent, and print it."""

    def do_POST(self) -> None:
        asked, answered = KINDS[self.path]
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.headers["content-type"] == "application/x-protobuf"
        print(json.dumps(MessageToDict(asked.FromString(body))), flush=True)  # noqa: T201  # what the test reads
        answer = answered().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Be quiet: what is printed is read by the test."""


if __name__ == "__main__":
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        print(server.server_port, flush=True)  # noqa: T201  # the same
        server.serve_forever()
