"""All that `make bench` measures, and docs/performance.md with its picture.

    python -m bench [SECTION…]

Each section is a process of its own, so that none measures what another left. Naming some prints them and
writes nothing.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.bars import picture
from bench.tables import Table, kept

SECTIONS = ("start_up", "agent_path", "relay_tables", "rival_tables")
DOCS = Path(__file__).parent.parent / "docs"
PICTURE = "performance.svg"
_PAGE = """\
# Performance

`make bench` measures all of this in one run, and writes this page. What counts is CPU time, user and system, of the
process that is measured: other work on the machine hardly moves it. Where another is the base, both take turns,
and the ratio is the median of the turns' ratios. Differences under 15 % mean nothing. `tests/test_performance.py`
guards what does not drift: instructions and allocations (`python -m bench.instructions` prints them), function calls,
system calls and imports.

Measured on {machine},
{date}, at a load average of {load:.1f}.
What is told of time, and not of CPU, holds for an idle machine only.

![Ratios, and their goals]({picture})

{tables}"""


def machine() -> str:
    """What it is, without its name."""
    cores = "an unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cores = line.partition(":")[2].strip()
            break
    count = len([line for line in Path("/proc/stat").read_text().splitlines() if line[:3] == "cpu"])
    return f"{count - 1} cores of {cores}, Linux {platform.release().split('-')[0]}, CPython {platform.python_version()}"


def measured(section: str, folder: Path) -> list[Table]:
    """Run one section. Raises CalledProcessError."""
    path = folder / f"{section}.json"
    command = (sys.executable, "-m", f"bench.{section}", "--json", str(path))
    subprocess.run(command, check=True)
    return kept(path)


def write_page(tables: Sequence[Table], load: float) -> None:
    """docs/performance.md and its picture."""
    bars = [bar for table in tables for bar in table.bars]
    (DOCS / PICTURE).write_text(picture(bars))
    page = _PAGE.format(
        machine=machine(),
        date=datetime.now(UTC).date().isoformat(),
        load=load,
        picture=PICTURE,
        tables="\n".join(table.markdown() for table in tables),
    )
    (DOCS / "performance.md").write_text(page)


def main(names: Sequence[str]) -> int:
    """Returns the exit code: 1 where a section failed."""
    found: list[Table] = []
    failed = []
    began = time.monotonic()
    load = os.getloadavg()[1]
    with tempfile.TemporaryDirectory() as folder:
        for section in names or SECTIONS:
            try:
                found += measured(section, Path(folder))
            except subprocess.CalledProcessError as error:
                failed.append(f"{section} ended with {error.returncode}")
    print(f"\n{time.monotonic() - began:.0f} s", *failed, sep="; ")
    if not names and not failed:
        write_page(found, load)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
