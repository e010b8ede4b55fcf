"""Text generation: pages, sampling, scheduling, and the loop that runs the steps."""
