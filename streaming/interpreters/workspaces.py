"""Jails' folders on disk, for where they cannot have a tmpfs: how full they are, and away with them.

What lies in them was made by an attacker: no symlink is followed, no depth of nesting can exhaust
the stack, and counting stops where it has seen enough.
"""

import os
from itertools import count

_BYTES_PER_BLOCK = 512
_MOST_ENTRIES = 4096


def used_bytes(folder: str) -> float:
    """What the folder's files take on disk; infinite when there are more than 4,096 of them, or
    when some are hidden from us by permissions or by paths too long to name."""
    total = entries = 0
    pending = [folder]
    while pending:
        try:
            with os.scandir(pending.pop()) as found:
                for entry in found:
                    entries += 1
                    if entries > _MOST_ENTRIES:
                        return float("inf")
                    total += entry.stat(follow_symlinks=False).st_blocks * _BYTES_PER_BLOCK
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except FileNotFoundError:
            continue  # removed meanwhile
        except OSError:
            return float("inf")
    return total


def wipe(folder: str) -> None:
    """Remove a folder that no process writes in any more, with all that it holds.

    Nested folders are first moved up, so that no path grows long and nothing recurses.
    """
    names = (os.path.join(folder, f".{number}") for number in count())
    while entries := list(os.scandir(folder)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for inner in list(os.scandir(entry.path)):
                if inner.is_dir(follow_symlinks=False):
                    os.chmod(inner.path, 0o700)
                    os.rename(inner.path, next(name for name in names if not os.path.lexists(name)))
                else:
                    os.unlink(inner.path)
            os.rmdir(entry.path)
    os.rmdir(folder)
