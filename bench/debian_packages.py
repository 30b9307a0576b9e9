"""Programs that tests and benchmarks need besides Python: found, or installed where root may.

In: a program's name and its Debian package. Out: its path, or `Unavailable`, which says why not.
"""

import os
import shutil
import subprocess


class Unavailable(Exception):
    """A program cannot be had on this machine; says why."""


def program_path(name: str, package: str) -> str:
    """Where a program is; root on Debian gets it installed. Raises Unavailable."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    if found := shutil.which(name, path=path):
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Unavailable(
            f"{name} is not installed, and only root could (apt-get install {package})"
        )
    print(f"installing {name} (apt-get install {package})")
    # RUNLEVEL keeps the package from starting a server of its own.
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
    said = ""
    for command in (install, ["apt-get", "update", "-qq"], install):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        said = done.stderr[-200:]
        if found := shutil.which(name, path=path):
            return found
    raise Unavailable(f"apt-get install {package} failed: {said}")


def nginx_path() -> str:
    """Raises Unavailable."""
    return program_path("nginx", "nginx")
