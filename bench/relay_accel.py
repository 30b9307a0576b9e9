"""nginx that carries verbatim requests out itself, and the gateway that tells it to: X-Accel-Redirect.

In: the upstream's port. Out: a `Server` whose CPU is that of both processes. nginx is the benchmark's own, with
the named location of deploy/nginx/smolgate-accel.conf as it is shipped.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from bench.nginx_site import ACCEL
from bench.processes import process_saying
from bench.relay_servers import Server, gateway_server, nginx_server, pin

_PROOF = "shown-by-the-benchmarks-nginx"
_UPSTREAM = """
    upstream {name} {{
        server 127.0.0.1:{port};
        keepalive 4096;
        keepalive_requests 1000000000;
    }}
"""


@contextmanager
def accel_server(upstream_port: int) -> Iterator[Server]:
    """Both, running. Raises Unavailable."""
    with (
        gateway_server(
            upstream_port,
            ACCEL_REDIRECT="default",
            ACCEL_KEY=_PROOF,
            TRUSTED_PROXIES="127.0.0.1",
        ) as gateway,
        _nginx_asking(gateway.port, gateway.pid, upstream_port) as both,
    ):
        yield both


@contextmanager
def accel_floor(upstream_port: int) -> Iterator[Server]:
    """nginx and `bench.accel_floor`. Raises Unavailable."""
    with process_saying(r"^(\d+)$", "bench.accel_floor") as (pid, port):
        pin(pid, (os.cpu_count() or 1) - 1)
        with _nginx_asking(int(port), pid, upstream_port) as both:
            yield both


def _nginx_asking(port: int, pid: int, upstream_port: int) -> AbstractContextManager[Server]:
    """nginx, told what to do by the server of this port."""
    upstreams = {"smolgate": port, "smolgate_default": upstream_port}
    return nginx_server(
        upstream_port,
        "nginx with X-Accel-Redirect",
        first="smolgate",
        upstreams="".join(
            _UPSTREAM.format(name=name, port=port) for name, port in upstreams.items()
        ),
        locations=f"include {ACCEL};",
        headers=f"proxy_set_header X-Smolgate-Accel {_PROOF};",
        also=(pid,),
    )
