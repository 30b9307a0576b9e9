"""The worst code that a model can write, in real jails: with every layer, and with those that are
left where a container forbids namespaces.

`run_raw` stands for an interpreter already escaped: plain Python, any import. What `attempt` returns
is "did it" or the error that stopped it.
"""

import os
import resource
import time
from collections.abc import Iterator
from typing import Any

import pytest
from jail_pool_thread import IN_A_CONTAINER, PoolThread, make_interpreter, open_pool_thread, run_raw
from smolagents.local_python_executor import InterpreterError

from streaming.interpreters.confinement import THREADS_OF_A_USER, JailLimits
from streaming.interpreters.jail import JailKilled
from streaming.interpreters.jail_pool import JailPool

SECRET = "sk-this-must-not-be-seen"


@pytest.fixture(scope="module", params=[(), IN_A_CONTAINER], ids=["full", "container"])
def thread(request: pytest.FixtureRequest) -> Iterator[PoolThread]:
    with (
        pytest.MonkeyPatch.context() as patch,
        open_pool_thread(without=request.param, warm=1) as made,
    ):
        patch.setenv("API_TOKEN", SECRET)
        yield made


@pytest.fixture
def pool(thread: PoolThread) -> JailPool:
    return thread.pool


ATTEMPT = """
import ctypes, errno, os, socket, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *values):
    if function(*values) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def attempt(what):
    try:
        what()
    except BaseException as error:
        code = getattr(error, "errno", None)
        return errno.errorcode.get(code, str(code)) if code else type(error).__name__
    return "did it"
server = arguments
"""

# What is tried, as an expression, and the errors that may stop it.
ATTEMPTS = {
    "exec": ("os.execv('/bin/sh', ['sh'])", {"EPERM"}),
    "exec of python": ("os.execv(sys.executable, ['python'])", {"EPERM"}),
    "execveat": ("call(libc.syscall, 322 if os.uname().machine == 'x86_64' else 281, -1, b'/bin/sh', 0, 0, 0)", {"EPERM"}),
    "fork": ("os.fork()", {"EPERM"}),
    "vfork": ("__import__('subprocess').run(['/bin/true'])", {"EPERM"}),
    "system": ("__import__('subprocess').check_output('id', shell=True)", {"EPERM"}),
    "posix_spawn": ("os.posix_spawn('/bin/true', ['true'], {})", {"EPERM", "ENOSYS"}),
    "fork by clone3": ("call(libc.syscall, 435, bytes(88), 88)", {"ENOSYS"}),
    "tcp socket": ("socket.socket()", {"EPERM"}),
    "unix socket": ("socket.socket(socket.AF_UNIX)", {"EPERM"}),
    "netlink socket": ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", {"EPERM"}),
    "socketpair": ("socket.socketpair()", {"EPERM"}),
    "name lookup": ("socket.create_connection(('example.org', 80))", {"EPERM", "gaierror", "-3", "-2"}),
    "send over its own socket": ("socket.socket(fileno=3).sendmsg([b'x'])", {"EPERM"}),
    "passwd": ("open('/etc/passwd')", {"ENOENT", "EACCES"}),
    "shadow": ("open('/etc/shadow')", {"ENOENT", "EACCES"}),
    "list the root": ("os.listdir('/')", {"EACCES"}),
    "list the home": ("os.listdir(os.path.expanduser('~root'))", {"ENOENT", "EACCES"}),
    "environment of the server": ("open(f'/proc/{server}/environ').read()", {"ENOENT", "EACCES"}),
    "memory of the server": ("open(f'/proc/{server}/mem', 'rb')", {"ENOENT", "EACCES"}),
    "command line of init": ("open('/proc/1/cmdline').read()", {"ENOENT", "EACCES"}),
    "environment of the zygote": ("open(f'/proc/{os.getppid()}/environ').read()", {"ENOENT", "EACCES"}),
    "its own proc": ("open('/proc/self/environ').read()", {"ENOENT", "EACCES"}),
    "symlink to a file": ("(os.symlink('/etc/passwd', 'link'), open('link').read())", {"ENOENT", "EACCES"}),
    "symlink to a folder": ("(os.symlink('/', 'up'), os.listdir('up'))", {"EACCES"}),
    "hard link": ("os.link('/etc/passwd', 'hard')", {"ENOENT", "EACCES", "EXDEV", "EPERM"}),
    "path out of the workspace": ("open('../../../../etc/passwd').read()", {"ENOENT", "EACCES"}),
    # EROFS where the packages, which are bound read-only, lie below /tmp themselves.
    "write to /tmp": ("open('/tmp/outside', 'w')", {"ENOENT", "EACCES", "EROFS"}),
    "write to a package": ("open(os.__file__, 'a')", {"EACCES", "EROFS"}),
    "write beside a package": ("open(os.path.dirname(os.__file__) + '/evil.py', 'w')", {"EACCES", "EROFS"}),
    "remove a package": ("os.unlink(os.__file__)", {"EACCES", "EROFS"}),
    "chmod of a package": ("os.chmod(os.__file__, 0)", {"EPERM"}),
    "fchmod of a package": ("os.fchmod(os.open(os.__file__, os.O_RDONLY), 0)", {"EPERM"}),
    "touch of a package": ("os.utime(os.__file__)", {"EPERM"}),
    "device": ("open('/dev/mem', 'rb')", {"ENOENT", "EACCES"}),
    "tiocsti": ("__import__('fcntl').ioctl(0, 0x5412, b'x')", {"ENOTTY"}),
    "ptrace the server": ("call(libc.ptrace, 16, server, 0, 0)", {"EPERM"}),
    "read the server's memory": ("call(libc.process_vm_readv, server, 0, 0, 0, 0, 0)", {"EPERM"}),
    "pidfd of the server": ("os.pidfd_open(server)", {"EPERM"}),
    "kill the server": ("os.kill(server, 0)", {"EPERM"}),
    "kill the zygote": ("os.kill(os.getppid(), 9)", {"EPERM"}),
    "kill its group": ("os.kill(0, 9)", {"EPERM"}),
    "kill all": ("os.kill(-1, 9)", {"EPERM"}),
    "killpg": ("os.killpg(os.getpgid(server), 9)", {"EPERM"}),
    "signal by fcntl": ("__import__('fcntl').fcntl(3, 8, server)", {"EPERM"}),
    "limits of the server": ("__import__('resource').prlimit(server, 7)", {"EPERM"}),
    "higher limits": ("__import__('resource').setrlimit(9, (1 << 40, 1 << 40))", {"EPERM", "ValueError"}),
    "outlive the zygote": ("call(libc.prctl, 1, 0, 0, 0, 0)", {"EPERM"}),
    "leave its priority": ("os.nice(-10)", {"EPERM", "EACCES"}),
    "priority of the server": ("os.setpriority(os.PRIO_PROCESS, server, 19)", {"EPERM"}),
    "setuid": ("os.setuid(0)", {"EPERM"}),
    "unshare": ("call(libc.unshare, 0x10000000)", {"EPERM"}),
    "setns": ("call(libc.setns, 3, 0)", {"EPERM"}),
    "mount": ("call(libc.mount, b'x', b'.', b'tmpfs', 0, 0)", {"EPERM"}),
    "chroot": ("os.chroot('.')", {"EPERM"}),
    "memfd": ("os.memfd_create('x')", {"EPERM"}),
    "io_uring": ("call(libc.syscall, 425, 1, 0)", {"EPERM"}),
    "bpf": ("call(libc.syscall, 321 if os.uname().machine == 'x86_64' else 280, 0, 0, 0)", {"EPERM"}),
    "keyctl": ("call(libc.syscall, 250 if os.uname().machine == 'x86_64' else 219, 0, -3, 0)", {"EPERM"}),
    "userfaultfd": ("call(libc.syscall, 323 if os.uname().machine == 'x86_64' else 282, 0)", {"EPERM"}),
    "perf events": ("call(libc.syscall, 298 if os.uname().machine == 'x86_64' else 241, 0, 0, 0, 0, 0)", {"EPERM"}),
    "shared memory": ("call(libc.shmget, 0, 4096, 0o1600)", {"EPERM"}),
    "a call of tomorrow": ("call(libc.syscall, 999)", {"ENOSYS"}),
    "a file too large": ("open('big', 'wb').write(bytes(33 << 20))", {"EFBIG"}),
    "more memory": ("bytearray(3 << 30)", {"MemoryError"}),
    "more files than allowed": ("[os.dup(0) for _ in range(100)]", {"EMFILE"}),
}  # fmt: skip


def test_an_escaped_interpreter_gets_nowhere(thread: PoolThread) -> None:
    tries = ", ".join(f"{name!r}: attempt(lambda: {what})" for name, (what, _) in ATTEMPTS.items())
    outcomes = run_raw(thread.pool, f"{ATTEMPT}\nresult = {{{tries}}}", os.getpid())
    wrong = {name: got for name, got in outcomes.items() if got not in ATTEMPTS[name][1]}
    assert not wrong


def test_what_honest_code_needs_works(thread: PoolThread) -> None:
    source = """
import os, sqlite3, tempfile, threading, time, zoneinfo
with tempfile.TemporaryDirectory() as folder, open(folder + "/x", "w+") as file:
    file.write("hello")
    file.seek(0)
    text = file.read()
rows = sqlite3.connect("a.db").execute("select 1").fetchall()
seen = []
thread = threading.Thread(target=seen.append, args=(1,))
thread.start()
thread.join()
zoneinfo.ZoneInfo("Europe/Berlin")
result = text, rows, seen, os.getcwd() == os.environ["HOME"] == tempfile.gettempdir()
"""
    assert run_raw(thread.pool, source) == ("hello", [(1,)], [1], True)


def test_nothing_of_the_server_is_in_its_memory_or_environment(thread: PoolThread) -> None:
    source = """
import os, sys
result = dict(os.environ), sys.argv, "dotenv" in sys.modules, sorted(sys.path)
"""
    environment, argv, dotenv, path = run_raw(thread.pool, source)
    assert set(environment) - {"LC_CTYPE"} == {
        *("HOME", "TMPDIR", "LANG", "PYTHONDONTWRITEBYTECODE"),
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    }
    assert SECRET not in str((environment, argv))
    assert not dotenv
    assert os.getcwd() not in path


def test_the_project_and_its_environment_files_cannot_be_read(
    thread: PoolThread, tmp_path: Any
) -> None:
    (tmp_path / ".env").write_text(SECRET)
    source = """
def read(path):
    try:
        return open(path).read()
    except OSError as error:
        return type(error).__name__
result = [read(path) for path in arguments]
"""
    paths = [str(tmp_path / ".env"), os.path.abspath(__file__), os.path.abspath("setup.cfg")]
    assert set(run_raw(thread.pool, source, paths)) <= {"PermissionError", "FileNotFoundError"}


def test_it_holds_no_descriptor_but_its_own(thread: PoolThread) -> None:
    source = """
import os
result = []
for fd in range(4, 64):
    try:
        os.fstat(fd)
    except OSError:
        continue
    result.append(fd)
"""
    # runpy has closed its file by now; nothing else may be open above the socket.
    assert run_raw(thread.pool, source) == []


@pytest.mark.parametrize("kind", ["generator frame", "format string"])
def test_the_known_escapes_of_smolagents_find_nothing(pool: JailPool, kind: str) -> None:
    escapes = {
        "generator frame": """
def reach():
    yield frame_of.gi_frame.f_back
frame_of = reach()
frame = next(frame_of)
imports = None
while frame is not None and imports is None:
    imports = frame.f_locals.get("authorized_imports")
    frame = frame.f_back
imports.append("os")
imports.append("posix")
import os
os.system("id")
""",
        "format string": """
class Probe:
    def __init__(self):
        self.x = 1
import random
print("{0._os.environ}".format(random))
""",
    }
    prints: list[str] = []
    interpreter = make_interpreter(pool, prints=prints)
    try:
        output = str(interpreter(escapes[kind]).output)
    except InterpreterError as error:
        output = str(error)
    interpreter.cleanup()
    assert SECRET not in output + "".join(prints)
    assert "uid=" not in output + "".join(prints)


def test_threads_are_bounded(thread: PoolThread) -> None:
    source = """
import threading
gate = threading.Event()
started = 0
try:
    while started < 1000:
        threading.Thread(target=gate.wait, daemon=True).start()
        started += 1
except RuntimeError:
    pass
gate.set()
result = started
"""
    assert run_raw(thread.pool, source) < 1000


def test_a_fork_bomb_starts_nothing(thread: PoolThread) -> None:
    source = """
import os
result = 0
for _ in range(10_000):
    try:
        os.fork()
        result += 1
    except PermissionError:
        pass
"""
    assert run_raw(thread.pool, source) == 0


def test_files_are_bounded_in_sum(thread: PoolThread) -> None:
    """A gigabyte in files of 16 MB: the tmpfs is full, or the zygote sees it and kills."""
    source = """
import os
written = 0
try:
    for number in range(64):
        with open(f"file{number}", "wb") as file:
            written += file.write(bytes(16 << 20))
            file.flush()
            os.fsync(file.fileno())
except OSError as error:
    result = error.strerror
else:
    import time
    time.sleep(5)
    result = "did it"
"""
    try:
        outcome = run_raw(thread.pool, source, step_seconds=30)
    except JailKilled as killed:
        outcome = str(killed)
    assert "No space left" in outcome or "its files took more room" in outcome


def test_many_small_files_are_bounded(thread: PoolThread) -> None:
    source = """
import os, time
try:
    for number in range(100_000):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
except OSError as error:
    result = error.strerror
else:
    time.sleep(5)
    result = "did it"
"""
    try:
        outcome = run_raw(thread.pool, source, step_seconds=30)
    except JailKilled as killed:
        outcome = str(killed)
    assert "No space left" in outcome or "its files took more room" in outcome


def test_a_gigabyte_of_prints_costs_a_megabyte(pool: JailPool) -> None:
    prints: list[str] = []
    interpreter = make_interpreter(pool, prints=prints, step_seconds=60)
    interpreter("text = 'x' * 10**6\nfor n in range(1000):\n    print(text)")
    interpreter.cleanup()
    assert sum(map(len, prints)) < 1_100_000


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import ctypes\nctypes.string_at(0)", "SIGSEGV"),
        ("import os\nos.abort()", "SIGABRT"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import os\nos._exit(7)", "ended by itself with status 7"),
        ("import os\nos.closerange(0, 64)", "ended by itself"),
    ],
    ids=["segfault", "abort", "suicide", "exit", "closed descriptors"],
)
def test_a_process_that_ends_is_told_by_name_and_the_run_goes_on(
    pool: JailPool, source: str, why: str
) -> None:
    interpreter = make_interpreter(pool, authorized_imports=["*"])
    code = f"import pathlib, runpy\npathlib.Path('a.py').write_text({source!r})\nrunpy.run_path('a.py')"
    with pytest.raises(JailKilled, match=f"{why}.*all variables are lost"):
        interpreter(code)
    assert interpreter("1 + 1").output == 2
    interpreter.cleanup()


@pytest.mark.parametrize(
    "source",
    [
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
        "import time\ntime.sleep(600)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        "import signal\nfor n in range(1, 64):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
    ],
    ids=["exceptions", "regex", "sleep", "stopped", "signals ignored"],
)  # fmt: skip
def test_what_never_ends_is_ended(thread: PoolThread, source: str) -> None:
    with pytest.raises(JailKilled, match="exceeded 1 s"):
        run_raw(thread.pool, source, step_seconds=1.0)


RAW_FRAME = """
import os, struct
def frame(body):
    os.write(3, struct.pack(">I", len(body)) + body)
"""


@pytest.mark.parametrize(
    "source",
    [
        "os.write(3, b'\\xff' * 1000)",
        "frame(b'')",
        "frame(b'\\x91\\xa5ready')",
        "frame(b'\\xdd\\xff\\xff\\xff\\xff')",
        "frame(b'\\x91' * 100_000)",
        "frame(b'\\x93\\xa6called\\xa7missing\\xc4\\x01N')",
        "frame(b'\\x93\\xa6called\\xacfinal_answer\\xc4\\x01N')",
        "frame(b'\\x93\\xa6called\\xacfinal_answer\\xc4\\x05t\\xff\\xff\\xff\\xff')",
        "frame(b'\\x93\\xa8finished\\xc4\\x01?\\xc2')",
        "while True: frame(b'\\x92\\xa7printed\\xa0')",
        "while True: frame(b'\\x92\\xa7printed\\xd9\\xff' + b'x' * 255)",
    ],
    ids=[
        *("length", "empty", "out of turn", "array of 4G", "nested", "unknown tool"),
        *("no arguments", "tuple of 4G", "unknown value", "flood of nothing", "flood of text"),
    ],
)
def test_a_jail_that_breaks_the_protocol_is_killed(thread: PoolThread, source: str) -> None:
    began = time.monotonic()
    with pytest.raises(JailKilled, match="broke out of its interpreter and was killed"):
        run_raw(thread.pool, f"{RAW_FRAME}\n{source}\nimport time\ntime.sleep(60)")
    assert time.monotonic() - began < 10


def test_nothing_is_left_of_all_this(thread: PoolThread) -> None:
    """Last of the module: only the warm jail lives, and the server's children are one zygote."""
    deadline = time.monotonic() + 10
    while thread.pool.stats.alive > thread.pool.stats.warm and time.monotonic() < deadline:
        time.sleep(0.01)
    assert thread.pool.stats.alive == thread.pool.stats.warm
    assert thread.pool.stats.zygote_restarts == 0


def test_the_limits_are_read_back(thread: PoolThread) -> None:
    source = """
import resource
result = [resource.getrlimit(kind)[0] for kind in arguments]
"""
    kinds = [resource.RLIMIT_CORE, resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NPROC]
    limits = JailLimits(memory_bytes=1 << 30, cpu_seconds=5, threads=9)
    # Without a user or a namespace of its own its threads are counted with the server's.
    active = thread.pool.layers.partition("(")[0]
    counted = 0 if "namespaces" in active else THREADS_OF_A_USER
    assert run_raw(thread.pool, source, kinds, limits=limits) == [0, 1 << 30, 5, counted + 9]
