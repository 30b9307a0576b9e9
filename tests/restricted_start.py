"""Starts a command as systemd or docker would confine it: `python restricted_start.py unit|docker COMMAND…`.

In: the shipped unit's own directives, or what docker's default profile refuses. Out: the command, exec'ed
as another user without capabilities, without new privileges, below the same seccomp filter and, for the unit, with the same
read-only and hidden folders. A manager and an engine are not at hand where tests run; the kernel does the
confining in either case, and the kernel is asked here just as they ask it.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
UNIT = ROOT / "deploy" / "systemd" / "smolgate.service"
USER = 10001

# What docker's default seccomp profile allows only with CAP_SYS_ADMIN (moby, profiles/seccomp/default.json).
DOCKER_REFUSES = (
    *("bpf", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr"),
    *("move_mount", "open_tree", "perf_event_open", "pivot_root", "quotactl", "setdomainname"),
    *("sethostname", "setns", "syslog", "umount", "umount2", "unshare", "keyctl", "add_key"),
    *("request_key", "userfaultfd", "ptrace", "kcmp", "process_vm_readv", "chroot"),
)
NAMESPACE_FLAGS = {
    "cgroup": 0x02000000,
    "ipc": 0x08000000,
    "mnt": 0x00020000,
    "net": 0x40000000,
    "pid": 0x20000000,
    "user": 0x10000000,
    "uts": 0x04000000,
}
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026  # seccomp.h: actions and errno
_MASKED_EQUAL = 7
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MOUNT_SETATTR, _AT_RECURSIVE, _RDONLY = 442, 0x8000, 1
_CLONE_NEWNS = 0x00020000
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38

_libc = ctypes.CDLL(None, use_errno=True)


class _Argument(ctypes.Structure):
    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    ]


class _Filter:
    """A seccomp program by libseccomp, which is what systemd and docker use, too."""

    def __init__(self, default: int) -> None:
        self._lib = ctypes.CDLL("libseccomp.so.2")
        self._lib.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._lib.seccomp_init(ctypes.c_uint32(default)))

    def add(self, action: int, name: str, *arguments: _Argument) -> None:
        number = self._lib.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return  # not of this architecture
        array = (_Argument * max(1, len(arguments)))(*arguments)
        code = self._lib.seccomp_rule_add_array(
            self._context, ctypes.c_uint32(action), number, len(arguments), array
        )
        if code not in (0, -17):  # -EEXIST
            raise OSError(-code, f"no rule for {name}")

    def load(self) -> None:
        if code := self._lib.seccomp_load(self._context):
            raise OSError(-code, "seccomp_load")


def directives(name: str) -> list[str]:
    """The words of all lines of one directive of the unit."""
    lines = UNIT.read_text().splitlines()
    prefix = f"{name}="
    return [
        word for line in lines if line.startswith(prefix) for word in line[len(prefix) :].split()
    ]


def _names_of(group: str) -> set[str]:
    """The system calls of `@group`, as the installed systemd has them."""
    told = subprocess.run(
        ["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True
    )
    names = {word for line in told.stdout.splitlines()[1:] if (word := line.strip())}
    names = {name for name in names if not name.startswith("#")}
    return {each for name in names for each in (_names_of(name) if name[0] == "@" else {name})}


def _refuse_namespaces(program: _Filter, refused: set[str]) -> None:
    for kind in refused:
        flag = NAMESPACE_FLAGS[kind]
        for call in ("unshare", "clone"):
            program.add(_EPERM, call, _Argument(0, _MASKED_EQUAL, flag, flag))
        program.add(_EPERM, "setns", _Argument(1, _MASKED_EQUAL, flag, flag))
    program.add(_ENOSYS, "clone3")  # its flags lie in memory: libc then takes clone


def confine_as_the_unit() -> None:
    assert directives("ProtectSystem") == ["strict"]
    assert directives("ProtectKernelTunables") == ["yes"]
    _mount("/tmp", "/tmp", _MS_BIND | _MS_REC)
    _mount("/proc/sys", "/proc/sys", _MS_BIND | _MS_REC)
    _set_read_only("/", recursive=True)
    for path in ("/tmp", "/proc", "/dev"):
        _set_read_only(path, recursive=False, off=True)
    _become_nobody_special()
    program = _Filter(_ALLOW)
    _refuse_namespaces(program, set(NAMESPACE_FLAGS) - set(directives("RestrictNamespaces")))
    program.load()
    allowed: set[str] = set()
    for word in directives("SystemCallFilter"):
        allowed |= _names_of(word) if word.startswith("@") else {word}
    program = _Filter(_EPERM)
    for name in sorted(allowed | {"execve", "exit", "exit_group"}):
        program.add(_ALLOW, name)
    program.load()


def confine_as_docker() -> None:
    _become_nobody_special()
    program = _Filter(_ALLOW)
    _refuse_namespaces(program, set(NAMESPACE_FLAGS))
    for name in DOCKER_REFUSES:
        program.add(_EPERM, name)
    program.load()


def _mount(source: str | None, target: str, flags: int, kind: str | None = None) -> None:
    names = [text.encode() if text is not None else None for text in (source, target, kind)]
    if _libc.mount(*names, flags, None):
        raise OSError(ctypes.get_errno(), f"mount {target}")


def _set_read_only(path: str, *, recursive: bool, off: bool = False) -> None:
    flags = _AT_RECURSIVE if recursive else 0
    attributes = (ctypes.c_uint64 * 4)(*((0, _RDONLY) if off else (_RDONLY, 0)), 0, 0)
    if _libc.syscall(_MOUNT_SETATTR, -1, path.encode(), flags, attributes, 32):
        raise OSError(ctypes.get_errno(), f"mount_setattr {path}")


def _enter_own_mounts() -> None:
    """A mount namespace in which this checkout and this Python can be read by everybody."""
    if _libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    _mount(None, "/", _MS_REC | _MS_PRIVATE)
    wanted = {str(ROOT), sys.prefix, sys.base_prefix}
    closed = {path: shut for path in wanted if (shut := _first_closed(Path(path)))}
    opened = {path: os.open(path, os.O_PATH) for path in closed}
    for shut in set(closed.values()):
        _mount("open", shut, 0, "tmpfs")
        os.chmod(shut, 0o755)
    for path in sorted(closed):
        os.makedirs(path, exist_ok=True)
        _mount(f"/proc/self/fd/{opened[path]}", path, _MS_BIND | _MS_REC)


def _first_closed(path: Path) -> str | None:
    """The outermost folder above that other users cannot enter."""
    above = [*reversed(path.parents), path]
    return next((str(folder) for folder in above if not folder.stat().st_mode & 0o001), None)


def _become_nobody_special() -> None:
    if (folder := os.environ.get("TMPDIR")) is not None:
        os.chown(folder, USER, USER)
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    for capability in range(64):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no new privileges")
    os.setresuid(USER, USER, USER)


if __name__ == "__main__":
    _enter_own_mounts()
    {"unit": confine_as_the_unit, "docker": confine_as_docker}[sys.argv[1]]()
    os.execv(sys.argv[2], sys.argv[2:])
