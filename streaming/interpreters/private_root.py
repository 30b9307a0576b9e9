"""A root file system of the jail's own: paths in, a process that sees only those paths out.

A small tmpfs becomes the root; what may be read is bound into it, read-only, under its own name;
the workspace is a second tmpfs, bounded in bytes and entries. All of it is memory and belongs to
the mount namespace, so the kernel wipes it when the jail ends, however it ends.
"""

import ctypes
import os
from collections.abc import Iterable, Sequence

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_RDONLY, _MS_REMOUNT = 2, 4, 8, 1, 32
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MNT_DETACH = 2
_MOUNT_SETATTR = 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_ATTR_RDONLY_NOSUID_NODEV = 0b111
_OLD_ROOT = "/.old"
# A folder that every Linux has; the new root covers it only until it becomes the root.
_STAGE = "/tmp"

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    arguments = [text.encode() if text is not None else None for text in (source, target, kind)]
    _check(_libc.mount(*arguments, flags, options.encode()), f"mount {target}")


def _bind(path: str, *, writable: bool) -> None:
    """Show the old root's `path` under the same name. What does not exist is left out."""
    source = _OLD_ROOT + _resolved(path)
    if not os.path.exists(source):
        return
    if os.path.isdir(source):
        os.makedirs(path, mode=0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    _mount(source, path, None, _MS_BIND | _MS_REC)
    if writable:
        return
    attributes = (ctypes.c_uint64 * 4)(_ATTR_RDONLY_NOSUID_NODEV, 0, 0, 0)
    _check(
        _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, path.encode(), _AT_RECURSIVE, attributes, 32),
        f"mount_setattr {path}",
    )


def _resolved(path: str) -> str:
    """The path within the old root with its symlinks followed there, and not in the new root."""
    seen = ""
    pending = [part for part in path.split("/") if part]
    for _ in range(256):
        if not pending:
            break
        part = pending.pop(0)
        if part == "..":
            seen = seen.rpartition("/")[0]
            continue
        there = f"{_OLD_ROOT}{seen}/{part}"
        if not os.path.islink(there):
            seen = f"{seen}/{part}"
            continue
        link = os.readlink(there)
        if link.startswith("/"):
            seen = ""
        pending = [piece for piece in link.split("/") if piece not in ("", ".")] + pending
    return seen


def outermost(paths: Iterable[str]) -> list[str]:
    """Drop every path that lies within another: one bind shows both."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(above.rstrip("/") + "/") for above in kept):
            kept.append(path)
    return kept


def enter_private_root(
    readable: Sequence[str], devices: Sequence[str], workspace: str, workspace_bytes: int, uid: int
) -> None:
    """Pivot into the new root and stand in `workspace`, which `uid` owns.

    Needs a mount namespace of its own and the right to mount in it. Raises OSError; after one the
    process is of no use.
    """
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("jail", _STAGE, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=1m")
    os.mkdir(_STAGE + _OLD_ROOT)
    number = _PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(number, _STAGE.encode(), (_STAGE + _OLD_ROOT).encode()), "pivot_root")
    os.chdir("/")
    for path in outermost(readable):
        _bind(path, writable=False)
    for path in devices:
        _bind(path, writable=True)
    os.makedirs(workspace, exist_ok=True)
    _mount(
        "work",
        workspace,
        "tmpfs",
        _MS_NOSUID | _MS_NODEV | _MS_NOEXEC,
        f"mode=700,size={workspace_bytes},nr_inodes=4096,uid={uid},gid={uid}",
    )
    _check(_libc.umount2(_OLD_ROOT.encode(), _MNT_DETACH), "umount")
    os.rmdir(_OLD_ROOT)
    _mount("none", "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chdir(workspace)
