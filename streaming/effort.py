"""`reasoning_effort` → how many steps an agent may take, and how often it plans.

In: a fresh agent, as its author made it. Out: the same, with less or more of both; `medium` is the author's.
"""

from dataclasses import dataclass

from smolagents import MultiStepAgent

from streaming.run_spec import Effort


@dataclass(frozen=True)
class _Measure:
    """`steps` is a share of the agent's own; `plan_every` so many steps, 0: never, None: its own."""

    steps: float
    least_steps: int
    plan_every: int | None


MEASURES: dict[Effort, _Measure] = {
    "none": _Measure(0, 2, 0),
    "minimal": _Measure(0.25, 2, 0),
    "low": _Measure(0.5, 3, 0),
    "medium": _Measure(1, 1, None),
    "high": _Measure(2, 1, 4),
    "xhigh": _Measure(3, 1, 3),
}


def set_effort(agent: MultiStepAgent, effort: Effort, *, can_plan: bool) -> None:
    """Never more steps than the agent's own for less effort. Without `can_plan` no plans are added."""
    measure = MEASURES[effort]
    own = agent.max_steps
    steps = max(int(own * measure.steps), measure.least_steps)
    agent.max_steps = steps if measure.steps >= 1 else min(steps, own)
    if measure.plan_every == 0:
        agent.planning_interval = None
    elif measure.plan_every is not None and can_plan:
        agent.planning_interval = min(
            agent.planning_interval or measure.plan_every, measure.plan_every
        )
