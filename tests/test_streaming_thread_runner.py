"""What a kill leaves behind in the threads of runs: nothing."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import asyncio, sys, threading
from streaming.runners import thread

began = threading.Event()

def drive(spec, means, channel, stop):
    if spec == "busy":
        began.set()
        while True:
            pass

thread.drive = drive

async def main():
    runner = thread.ThreadRunner(None, max_threads=2)
    await runner.start("short", None, None).done
    for _ in range(3):
        work = runner.start("busy", None, None)
        await asyncio.to_thread(began.wait)
        began.clear()
        work.kill()
        await work.done
    for number in range(3000):  # as they end, and once more
        work = runner.start("short", None, None)
        for _ in range(number % 7):
            await asyncio.sleep(0)
        work.kill()
        work.kill()
        await work.done

asyncio.run(main())
calls = []
sys.setprofile(lambda *what: calls.append(what))
(lambda: None)()
sys.setprofile(None)
print("profiled" if calls else "not profiled")
"""


def test_kills_leave_no_exception_behind_that_holds_up_a_profiler() -> None:
    """In CPython 3.11 one that no thread feels does so for ever, and slows down every call."""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "profiled\n", "")
