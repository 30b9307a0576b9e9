"""Turns events into HTTP: the aiohttp server, its settings, routes and wire formats."""

__version__ = "0.1.0"
