"""The gateway on asyncio's own event loop, as it runs where uvloop is not installed."""

import sys

from server.__main__ import main

if __name__ == "__main__":
    sys.modules["uvloop"] = None  # type: ignore[assignment]
    sys.exit(main())
