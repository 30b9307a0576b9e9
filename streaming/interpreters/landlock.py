"""Landlock: which paths may be read and which may be written in, a restricted process out.

Called through ctypes, for libc has no wrappers. Rights and structures are those of Linux's
include/uapi/linux/landlock.h up to ABI 7; an older kernel is asked only for what it knows.
Landlock does not govern stat, chmod, chown, utime and extended attributes: syscall_filter does.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

# The same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _MAKE_SYM = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_ALL_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}

_READ = _READ_FILE | _READ_DIR
_WORK = (
    _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM
    | _REFER | _TRUNCATE
)  # fmt: skip
# What may be asked for where the rule is on a file and not on a folder.
_ON_FILES = _READ_FILE | _WRITE_FILE | _TRUNCATE

_NETWORK_RIGHTS = 0b11  # bind and connect of TCP, since ABI 4
_SCOPES = 0b11  # abstract sockets and signals, since ABI 6

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def landlock_version() -> int:
    """The kernel's Landlock ABI. Raises OSError where there is none or it is switched off."""
    return _call(_CREATE_RULESET, None, 0, _VERSION_FLAG)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _ON_FILES
        rule = struct.pack("=Qi", rights, fd)
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(fd)


def restrict_paths(readable: Iterable[str], devices: Iterable[str], workspace: str) -> None:
    """Confine this thread, for good, to reading `readable` and working within `workspace`.

    `devices` may be read and written. Nothing may be executed anywhere. no_new_privs must have
    been set. Raises OSError.
    """
    version = landlock_version()
    files = _ALL_FILE_RIGHTS[max(known for known in _ALL_FILE_RIGHTS if known <= version)]
    attributes = struct.pack(
        "=QQQ", files, _NETWORK_RIGHTS if version >= 4 else 0, _SCOPES if version >= 6 else 0
    )
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _call(_CREATE_RULESET, attributes, size, 0)
    try:
        for path in readable:
            _allow(ruleset, path, _READ & files)
        for path in devices:
            _allow(ruleset, path, (_READ_FILE | _WRITE_FILE) & files)
        _allow(ruleset, workspace, _WORK & files)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
