"""`smolgate new-key [NAME]`, or `python -m server.new_key`: makes an API key; prints it once, and its entry for a keys file."""

import argparse
import json
import secrets
import sys
from collections.abc import Sequence

from server.api_keys import HASH_MARK, digest_of


def main(arguments: Sequence[str]) -> int:
    """Print a key and its entry; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="smolgate new-key",
        description="Makes an API key, and prints it once with its entry for a keys file.",
    )
    parser.add_argument("name", nargs="?", help="whose it is, for logs and lists")
    name = parser.parse_args(arguments).name
    key = f"sg-{secrets.token_urlsafe(32)}"
    entry = {"key": HASH_MARK + digest_of(key).hex()}
    if name is not None:
        entry = {"name": name} | entry
    print(f"key, for the caller:     {key}")
    print(f"entry, for the keys file: {json.dumps(entry)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
