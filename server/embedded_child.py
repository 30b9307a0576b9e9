"""The embedded model's process: xllamacpp's own OpenAI server, alive only while its parent is.

In: its settings as JSON in argv[1]; end-of-file on stdin ends it. Out: one line of JSON on stdout when the
server listens with the model loaded (`{"ready": address}`) or cannot (`{"error": text}`); llama.cpp's log
on stderr. It runs as a script under `python -I`, so it imports nothing of smolgate.
"""

import ctypes
import json
import os
import signal
import sys
import threading
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    settings: dict[str, Any] = json.loads(sys.argv[1])
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # llama.cpp may print: stdout is for the report alone
    _die_with(settings["parent"])
    threading.Thread(target=_exit_at_end_of_stdin, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes us
    sys.path.append(settings["site"])
    try:
        server = _serve(settings)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        _say(report, {"error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    _say(report, {"ready": server.listening_address})
    threading.Event().wait()


def _say(report: Any, message: dict[str, str]) -> None:
    report.write(json.dumps(message) + "\n")
    report.flush()


def _die_with(parent: int) -> None:
    """SIGKILL when the parent's thread that spawned us ends, however it ends (Linux; elsewhere stdin tells)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.name == "posix" and os.getppid() != parent:
        os._exit(1)  # it died before we asked


def _exit_at_end_of_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


def _serve(settings: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model_path"]
    params.model_alias = {settings["model"]}
    params.offline = True
    params.hostnames = ["127.0.0.1"]
    params.port = settings["port"]
    params.reuse_port = settings["reuse_port"]
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["slots"] * settings["slot_tokens"]
    params.cpuparams.n_threads = settings["threads"]
    params.cpuparams_batch.n_threads = settings["threads"]
    params.cache_ram_mib = settings["cache_mib"]
    # Both only cost time at the start: 1.3 s to fit layers to a GPU, 0.6 s for a trial run.
    params.fit_params = False
    params.warmup = False
    params.ui = False
    params.endpoint_slots = False
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
