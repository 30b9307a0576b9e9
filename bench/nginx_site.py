"""nginx with the site file that is shipped, deploy/nginx/smolgate.conf, on free ports of loopback.

In: where the server listens, and further changes to lines of the file. Out: a running nginx with a
certificate of its own making. The file is used as it is but for the lines that it marks CHANGE, its ports,
and what a caller changes by name.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

from bench.debian_packages import Unavailable, nginx_path
from bench.relay_servers import await_port, free_ports

_FILES = Path(__file__).parent.parent / "deploy" / "nginx"
SITE = _FILES / "smolgate.conf"
ACCEL = _FILES / "smolgate-accel.conf"
HOST = "smolgate.example"

# All that is not the site's: what a distribution's nginx.conf says, without its paths.
_MAIN = """
{user}
daemon off;
worker_processes {workers};
worker_rlimit_nofile 8192;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/smolgate.conf;
}}
"""


@dataclass(frozen=True)
class NginxSite:
    """A running nginx; `authority` is the file of who signed its certificate."""

    http_port: int
    https_port: int
    authority: Path
    pid: int

    @property
    def base(self) -> str:
        """With a name that the certificate is for."""
        return f"https://localhost:{self.https_port}/v1"


def site_text(changes: Mapping[str, str]) -> str:
    """The shipped file with these texts in place of those. Raises ValueError for one it has not."""
    text = SITE.read_text()
    for old, new in changes.items():
        if old not in text:
            raise ValueError(f"{SITE.name} has no {old!r}")
        text = text.replace(old, new)
    return text


def accel_changes(upstream: str, key: str) -> dict[str, str]:
    """What a site changes that carries out verbatim requests itself."""
    return {
        "# upstream smolgate_default {": "upstream smolgate_default {",
        "#     server 10.0.0.5:8000;": f"    server {upstream};",
        "#     keepalive 64;\n# }": "    keepalive 64;\n}",
        "# include /etc/nginx/": "include /etc/nginx/",
        'X-Smolgate-Accel "";': f"X-Smolgate-Accel {key};",
    }


@contextmanager
def nginx_site(
    server: str, changes: Mapping[str, str] | None = None, workers: int = 1
) -> Iterator[NginxSite]:
    """nginx before `server` (`127.0.0.1:8000`, or `unix:/path`). Raises Unavailable."""
    binary = nginx_path()
    with tempfile.TemporaryDirectory(prefix="smolgate-nginx-") as name:
        folder = Path(name)
        http_port, https_port = free_ports(2)
        authority = _make_certificate(folder)
        text = site_text(
            dict(changes or {})
            | {
                "server unix:/run/smolgate/smolgate.sock;": f"server {server};",
                "listen 80;": f"listen 127.0.0.1:{http_port};",
                "    listen [::]:80;\n": "",
                "listen 443 ssl http2;\n    listen [::]": f"listen 127.0.0.1:{https_port} ssl http2;\n    # [::]",
                "/etc/ssl/smolgate/": f"{folder}/",
                "/etc/nginx/": f"{folder}/",
            }
        )
        (folder / "smolgate.conf").write_text(text)
        (folder / ACCEL.name).write_text(ACCEL.read_text())
        user = "user root;" if os.geteuid() == 0 else ""
        main = folder / "nginx.conf"
        main.write_text(_MAIN.format(folder=folder, user=user, workers=workers))
        command = [binary, "-p", name, "-c", str(main), "-e", f"{folder}/error.log"]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            try:
                try:
                    await_port(https_port)
                except OSError:
                    process.kill()
                    said = (folder / "error.log").read_text()[-500:]
                    raise Unavailable(f"nginx does not start: {said}") from None
                yield NginxSite(http_port, https_port, authority, process.pid)
            finally:
                process.terminate()
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its workers end with it, but not when it is killed."""
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()


def _make_certificate(folder: Path) -> Path:
    signer = trustme.CA()
    certificate = signer.issue_cert("localhost", "127.0.0.1", HOST)
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(folder / "fullchain.pem"), append=True)
    certificate.private_key_pem.write_to_path(str(folder / "privkey.pem"))
    signer.cert_pem.write_to_path(str(folder / "authority.pem"))
    return folder / "authority.pem"
