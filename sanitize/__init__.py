"""Cleans text: think tags, console noise. Standard library only; no I/O, no threads."""

from sanitize.deltas import DeltaScrubber
from sanitize.payload import scrub_reply
from sanitize.reasoning_lines import LineCleaner, clean_lines
from sanitize.think import DEFAULT_TAG_NAMES, Mode, Segment, ThinkScrubber, scrub, split

__all__ = [
    "DEFAULT_TAG_NAMES",
    "DeltaScrubber",
    "LineCleaner",
    "Mode",
    "Segment",
    "ThinkScrubber",
    "clean_lines",
    "scrub",
    "scrub_reply",
    "split",
]
