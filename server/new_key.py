"""`smolgate new-key [NAME]`, or `python -m server.new_key`: makes an API key; prints it once, and its entry for a keys file."""

import json
import secrets
import sys
from collections.abc import Sequence

from server.api_keys import HASH_MARK, digest_of


def main(arguments: Sequence[str]) -> int:
    """Print a key and its entry; returns the exit code."""
    key = f"sg-{secrets.token_urlsafe(32)}"
    entry = {"key": HASH_MARK + digest_of(key).hex()}
    if arguments:
        entry = {"name": arguments[0]} | entry
    print(f"key, for the caller:     {key}")
    print(f"entry, for the keys file: {json.dumps(entry)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
