"""What `make torture` and `make bench` promise of supervision, kept on real processes and sockets.

What depends on how busy the machine is stays in `make bench`.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "command",
    [("bench.torture",), ("bench.supervision", "disconnects", "leaks")],
    ids=" ".join,
)
def test_the_promise_is_kept(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left: nothing" in done.stdout
