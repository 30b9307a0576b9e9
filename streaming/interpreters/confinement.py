"""Confinement: a plan of layers in, a process that model-written code may run in out.

Each layer stands alone, so that losing one still leaves the others:

    namespaces  no network, no System V objects, no mounts, host name or signals of the host's
    root        a root file system of its own with only Python in it (private_root)
    user        started by root: a user id that nothing on the machine belongs to
    landlock    files: read Python, write the workspace, execute nothing (landlock)
    seccomp     system calls: none that starts, signals or inspects a process or opens a socket

No new privileges, no capabilities, resource limits, low priority and death with the zygote are not
layers: they work everywhere and always apply.
"""

import ctypes
import os
import resource
import struct
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from streaming.interpreters.landlock import restrict_paths
from streaming.interpreters.private_root import enter_private_root
from streaming.interpreters.syscall_filter import make_filter

LAYERS = ("namespaces", "root", "user", "landlock", "seccomp")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
WORKSPACE = "/workspace"

_SHARED_FILES = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"),
    *("/usr/share/zoneinfo", "/etc/localtime", "/usr/share/fonts"),
)
# System-wide Python needs nothing of its prefix beyond the folders above.
_SYSTEM_PREFIXES = ("/usr", "/usr/local")

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 24, 22, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_SECCOMP_MODE_FILTER = 2
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION = 0x20080522
_SIGKILL = 9
_NICE = 10
# Plus the process id: far above every id that distributions and containers hand out.
_FIRST_JAIL_UID = 1_879_048_192
_NOBODY = 65_534

_libc = ctypes.CDLL(None, use_errno=True)


# Without a user or a namespace of its own a jail's threads are counted by the kernel together with all others of
# the server's user, of its other jails and of what else that runs.
THREADS_OF_A_USER = 8192


@dataclass(frozen=True)
class JailLimits:
    """What one jail may use. The `print_`, `value_` and `tool_` limits are for one step.

    memory_bytes is address space, of which Python and its libraries take a few hundred MB.
    print_bytes: a megabyte is 20,000 lines, more than anyone reads while they stream, and twenty
    times what smolagents shows the model.
    """

    memory_bytes: int = 2 << 30
    cpu_seconds: int = 600
    file_bytes: int = 32 << 20
    open_files: int = 64
    threads: int = 64
    print_bytes: int = 1 << 20
    value_bytes: int = 16 << 20
    tool_calls: int = 10_000


@dataclass(frozen=True)
class ConfinementPlan:
    """What every jail of a zygote gets: the layers to apply (all of them, or the jail dies), what
    may be read, and the size of the workspace. Paths are absolute."""

    layers: tuple[str, ...]
    readable: tuple[str, ...]
    disk_bytes: int


class LayerFailed(Exception):
    """The kernel, or whoever runs this container, does not allow a layer."""

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"{layer}: {reason}")
        self.layer = layer
        self.reason = reason


def python_paths() -> tuple[str, ...]:
    """This Python, its packages and what they load: folders and files that a jail may read."""
    found = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *_SHARED_FILES}
    found.update(
        path
        for path in sys.path
        if os.path.basename(path) in ("site-packages", "dist-packages", "lib-dynload")
    )
    if sys.base_prefix not in _SYSTEM_PREFIXES:
        found.add(os.path.join(sys.base_prefix, "lib"))
    return tuple(sorted(path for path in found if os.path.exists(path)))


def prepare() -> None:
    """Work out before forking what every child would work out again for itself."""
    with suppress(OSError):  # what is not there, a child tells by its layer
        make_filter(os.getpid())
        _mapped_user_ids()


def confine(plan: ConfinementPlan, workspace: str, zygote_pid: int) -> None:
    """Confine this single-threaded process for good; resource limits excepted (set_limits).

    `workspace` is an existing folder, or where the `root` layer shall make one. Raises
    LayerFailed, after which the process must exit.
    """
    _yield_to_the_server()
    uid = _own_user_id() if "user" in plan.layers and os.geteuid() == 0 else os.geteuid()
    if "namespaces" in plan.layers:
        uid = _layer("namespaces", _enter_namespaces, uid)
    if "root" in plan.layers:
        arguments = (plan.readable, DEVICES, workspace, plan.disk_bytes, uid)
        _layer("root", enter_private_root, *arguments)
    elif uid != os.geteuid():
        _layer("user", os.chown, workspace, uid, -1)
    if uid != os.geteuid():
        _layer("user", _become, uid, plan.readable)
    os.chdir(workspace)
    _drop_capabilities()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # Only now: the kernel forgets the death signal whenever the user or capabilities change.
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != zygote_pid:
        os._exit(1)
    if "landlock" in plan.layers:
        _layer("landlock", restrict_paths, plan.readable, DEVICES, workspace)
    if "seccomp" in plan.layers:
        _layer("seccomp", _filter_calls)


def set_limits(limits: JailLimits, layers: Iterable[str]) -> None:
    """Lower this process's resource limits, soft and hard, to `limits`, for a jail of these layers."""
    has_own_count = not {"namespaces", "user"}.isdisjoint(layers)
    threads = limits.threads if has_own_count else limits.threads + THREADS_OF_A_USER
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_NPROC, threads),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        _lower(kind, value, value)
    # SIGXCPU, which is told apart from other ends, then a second later SIGKILL.
    _lower(resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + 1)


def _lower(kind: int, soft: int, hard: int) -> None:
    _, ceiling = resource.getrlimit(kind)
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(kind, (soft, hard))


def _layer(name: str, apply: object, *arguments: object) -> int:
    assert callable(apply)
    try:
        result = apply(*arguments)
    except OSError as error:
        raise LayerFailed(name, error.strerror or str(error)) from None
    return result if isinstance(result, int) else 0


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def _yield_to_the_server() -> None:
    """Computing comes after the server's, and when memory runs out the kernel takes a jail."""
    os.nice(_NICE)
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:
        return  # no /proc, or not ours to write: the limits on memory stand without it


def _own_user_id() -> int:
    """An id for this jail alone, so that no file, process or limit is shared with another."""
    wanted = _FIRST_JAIL_UID + os.getpid()
    return wanted if any(wanted in ids for ids in _mapped_user_ids()) else _NOBODY


@cache
def _mapped_user_ids() -> list[range]:
    """The ids that there are in the user namespace that this process started in."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        rows = [tuple(map(int, line.split())) for line in file]
    return [range(start, start + count) for start, _, count in rows]


def _enter_namespaces(uid: int) -> int:
    """Returns the user id that the jail will have, for not all are there in a user namespace."""
    own_uid, own_gid = os.geteuid(), os.getegid()
    spaces = _NEWNS | _NEWUTS | _NEWIPC | _NEWNET
    if own_uid == 0 and _libc.unshare(spaces) == 0:
        return uid
    _check(_libc.unshare(spaces | _NEWUSER), "unshare")
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{own_uid} {own_uid} 1"),
        ("gid_map", f"{own_gid} {own_gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(line)
    return own_uid


def _become(uid: int, readable: Iterable[str]) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    for path in readable:
        wanted = os.R_OK | os.X_OK if os.path.isdir(path) else os.R_OK
        if not os.access(path, wanted):
            raise OSError(f"{path} is not readable to other users")


def _drop_capabilities() -> None:
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in range(64):
        # EINVAL past the last one, EPERM without CAP_SETPCAP: the sets emptied below decide.
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    number = _CAPSET.get(os.uname().machine)
    if number is not None:
        _check(_libc.syscall(number, header, bytes(24)), "capset")


def _filter_calls() -> None:
    program = ctypes.create_string_buffer(make_filter(os.getpid()))
    length = (len(program) - 1) // 8
    # struct sock_fprog: a length, padding, a pointer.
    descriptor = struct.pack("@HP", length, ctypes.addressof(program))
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, descriptor, 0, 0), "seccomp")
