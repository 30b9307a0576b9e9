"""Ids of runs, which are those of their chat completions.

A run that pauses for its client's tools has several completions, and no two have the same id: the first
has the run's, a later one the same and the place where it begins. Each of them finds the run.
"""

import secrets


def new_run_id() -> str:
    """Unique, and hard to guess: who knows it may look at the run."""
    return f"chatcmpl-{secrets.token_hex(14)}"


def leg_id(run_id: str, begin: int) -> str:
    """The completion's id of the leg that begins there."""
    return f"{run_id}-{begin}" if begin else run_id


def run_id_of(completion_id: str) -> str:
    """The id of the run that has this completion."""
    kind, _, rest = completion_id.partition("-")
    return f"{kind}-{rest.partition('-')[0]}"
