"""Measurements. Each prints figures, and ratios where two things are compared in one run."""
