"""Where a run lives: interchangeable ways to carry out a `RunSpec`."""
