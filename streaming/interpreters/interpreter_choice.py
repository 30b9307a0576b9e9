"""Which interpreter an agent's code gets: the run's own process, or a jail.

In: where jails come from, if any do. Out: what `RunMeans.make_interpreter` takes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from streaming.agent_context import MakeInterpreter
from streaming.cancellation import StopSignal
from streaming.interpreters.confinement import JailLimits
from streaming.interpreters.inline import InlineInterpreter
from streaming.interpreters.jail import JailInterpreter
from streaming.interpreters.jail_process import JailSource


def interpreter_maker(
    jails: JailSource | None, *, step_seconds: float, limits: JailLimits
) -> MakeInterpreter:
    """Makers of jailed interpreters, or of inline ones where there are no jails."""
    if jails is None:
        return _make_inline
    return partial(_make_jail, jails, step_seconds, limits)


def _make_inline(
    authorized_imports: Sequence[str], *, stop: StopSignal, **options: Any
) -> InlineInterpreter:
    return InlineInterpreter(authorized_imports, check_stop=stop.check, **options)


def _make_jail(
    jails: JailSource,
    step_seconds: float,
    limits: JailLimits,
    authorized_imports: Sequence[str],
    *,
    stop: StopSignal,
    **options: Any,
) -> JailInterpreter:
    interpreter = JailInterpreter(
        jails,
        authorized_imports=authorized_imports,
        check_stop=stop.check,
        step_seconds=step_seconds,
        limits=limits,
        **options,
    )
    stop.tell(interpreter.kill)
    return interpreter
