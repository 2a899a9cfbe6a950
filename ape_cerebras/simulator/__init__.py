"""A simulated Cerebras API, and the self-check that plays against it."""
