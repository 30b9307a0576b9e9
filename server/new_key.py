"""`python -m server.new_key [NAME]`: makes an API key; prints it once, and its entry for a keys file."""

import json
import secrets
import sys

from server.api_keys import HASH_MARK, digest_of


def main() -> int:
    """Print a key and its entry; returns the exit code."""
    key = f"sg-{secrets.token_urlsafe(32)}"
    entry = {"key": HASH_MARK + digest_of(key).hex()}
    if len(sys.argv) > 1:
        entry = {"name": sys.argv[1]} | entry
    print(f"key, for the caller:     {key}")
    print(f"entry, for the keys file: {json.dumps(entry)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
