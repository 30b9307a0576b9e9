"""`smolgate new-key [NAME]`, or `python -m server.new_key`: makes an API key; prints it once, and its entry for a keys file."""

import argparse
import json
import secrets
import sys
from collections.abc import Sequence
from typing import Any

from server.api_keys import HASH_MARK, digest_of


def main(arguments: Sequence[str]) -> int:
    """Print a key and its entry; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="smolgate new-key",
        description="Makes an API key, and prints it once with its entry for a keys file.",
    )
    parser.add_argument("name", nargs="?", help="whose it is, for logs and lists")
    parser.add_argument(
        "--operator", action="store_true", help="it may see and cancel everybody's runs"
    )
    given = parser.parse_args(arguments)
    key = f"sg-{secrets.token_urlsafe(32)}"
    entry: dict[str, Any] = {"key": HASH_MARK + digest_of(key).hex()}
    if given.name is not None:
        entry = {"name": given.name} | entry
    if given.operator:
        entry["operator"] = True
    print(f"key, for the caller:     {key}")
    print(f"entry, for the keys file: {json.dumps(entry)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
