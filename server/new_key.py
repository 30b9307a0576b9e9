"""`python -m server.new_key [NAME [--operator]]`: makes an API key; prints it once, and its entry for a keys file."""

import json
import secrets
import sys
from typing import Any

from server.api_keys import HASH_MARK, digest_of

OPERATOR = "--operator"


def main() -> int:
    """Print a key and its entry; returns the exit code."""
    key = f"sg-{secrets.token_urlsafe(32)}"
    names = [argument for argument in sys.argv[1:] if argument != OPERATOR]
    entry: dict[str, Any] = {"key": HASH_MARK + digest_of(key).hex()}
    if names:
        entry = {"name": names[0]} | entry
    if OPERATOR in sys.argv[1:]:
        entry["operator"] = True
    print(f"key, for the caller:     {key}")
    print(f"entry, for the keys file: {json.dumps(entry)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
