"""nginx that carries verbatim requests out itself, and the gateway that tells it to: X-Accel-Redirect.

In: the upstream's port. Out: a `Server` whose CPU is that of both processes. nginx is the benchmark's own, with
the named location of deploy/nginx/smolgate-accel.conf as it is shipped.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench.nginx_site import ACCEL
from bench.relay_servers import Server, gateway_server, nginx_server

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
    with ExitStack() as stack:
        gateway = stack.enter_context(
            gateway_server(
                upstream_port,
                ACCEL_REDIRECT="default",
                ACCEL_KEY=_PROOF,
                TRUSTED_PROXIES="127.0.0.1",
            )
        )
        both = nginx_server(
            upstream_port,
            "nginx with X-Accel-Redirect",
            first="smolgate",
            upstreams="".join(
                _UPSTREAM.format(name=name, port=port)
                for name, port in (
                    ("smolgate", gateway.port),
                    ("smolgate_default", upstream_port),
                )
            ),
            locations=f"include {ACCEL};",
            headers=f"proxy_set_header X-Smolgate-Accel {_PROOF};",
            also=(gateway.pid,),
        )
        yield stack.enter_context(both)
