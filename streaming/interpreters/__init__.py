"""Where model-written code runs: interchangeable smolagents executors."""
