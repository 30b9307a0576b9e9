"""The worst code that a model can write, by name, for the torture and its tests.

Each is one step of an agent whose imports are not restricted, so that nothing but the jail stands in the
way. `PARENT` stands for the server's process id, `SECRET` for where its secrets would be.
"""

from typing import NamedTuple


class Attack(NamedTuple):
    """`told` must stand in what the run's reader sees, `not_told` must not."""

    code: str
    told: str = ""
    not_told: str = "uid="


ESCAPE = """
def leak():
    yield (1).real
generator = leak()
for item in generator:
    pass
import os
print(os.system("id"))
"""

ATTACKS = {
    "endless loop": Attack("while True:\n    pass"),
    "endless loop in C": Attack(
        "import itertools, collections\ncollections.deque(itertools.repeat(1), maxlen=0)",
        "was killed",
    ),
    "10**10**8": Attack("len(str(10**10**8))", "was killed"),
    "catastrophic regex": Attack("import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')", "was killed"),
    "sleep 600": Attack("import time\ntime.sleep(600)", "was killed"),
    "fork bomb": Attack("import os\nwhile True:\n    os.fork()", "Error"),
    "thread bomb": Attack(
        "import threading, time\nfor i in range(100000):\n"
        "    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
        "Error",
    ),
    "'a' * 10**11": Attack("x = 'a' * 10**11", "MemoryError"),
    "memory in steps": Attack("x = []\nwhile True:\n    x.append('a' * 10**8)", "Error"),
    "print 1 GB": Attack("for i in range(10**4):\n    print('x' * 10**5)", ""),
    "write 1 GB": Attack(
        "import os\nfor i in range(64):\n    f = open(str(i), 'wb')\n    f.write(b'x' * 2**24)\n    f.close()",
        "Error",
    ),
    "segfault": Attack("import ctypes\nctypes.string_at(0)", "SIGSEGV"),
    "close all fds": Attack("import os\nos.closerange(0, 4096)\nprint('closed')", ""),
    "catch BaseException": Attack(
        "import time\nwhile True:\n    try:\n        time.sleep(1)\n    except BaseException:\n        pass",
        "was killed",
    ),
    "escape, then os.system": Attack(ESCAPE, ""),
    "format the environment": Attack(
        "import os\nprint('{0.environ}'.format(os))\nprint(dict(os.environ))", "", "SECRET"
    ),
    "open a socket": Attack(
        "import socket\ns = socket.socket()\ns.connect(('127.0.0.1', 80))\nprint('connected')",
        "Error",
        "connected\n",
    ),
    "read /etc/passwd": Attack("print(open('/etc/passwd').read())", "Error", "root:"),
    "read the parent": Attack(
        "import os\nprint(open(f'/proc/PARENT/environ').read())", "Error", "SECRET"
    ),
    "kill the parent": Attack("import os, signal\nos.kill(PARENT, 9)\nprint('killed')", "Error"),
    "kill everyone": Attack("import os\nos.kill(-1, 9)", ""),
    "symlink": Attack(
        "import os\nos.symlink('/etc/passwd', 'link')\nprint(open('link').read())", "Error", "root:"
    ),
    "ptrace": Attack(
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "print('ptrace', libc.ptrace(16, PARENT, 0, 0), ctypes.get_errno())",
        "ptrace -1 ",
    ),
    "exec": Attack("import os\nos.execv('/bin/sh', ['sh', '-c', 'id'])", "Error"),
    "subprocess": Attack(
        "import subprocess\nprint(subprocess.run(['id'], capture_output=True))", "Error"
    ),
}
