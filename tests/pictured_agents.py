"""Agents for the pictures of `/runs`: tools that take a while, as real ones do."""

import time

from smolagents import CodeAgent, tool

from streaming.agent_context import AgentContext


@tool
def web_search(query: str) -> str:
    """Looks something up.

    Args:
        query: what
    """
    time.sleep(0.7)
    if "tide" in query:
        raise TimeoutError("no answer")
    return "found: " + query


@tool
def fetch_weather(place: str) -> str:
    """Tells the weather.

    Args:
        place: where
    """
    time.sleep(0.4)
    return "windy in " + place


@tool
def route_planner(minutes: int) -> str:
    """Plans a route.

    Args:
        minutes: how long it may take
    """
    time.sleep(minutes)
    return "by the coast"


def trip_planner(context: AgentContext) -> CodeAgent:
    return CodeAgent(tools=[web_search, fetch_weather, route_planner], model=context.model)


def invoice_reader(context: AgentContext) -> CodeAgent:
    return CodeAgent(tools=[web_search], model=context.model)
