"""The network: the GPT, the rungs of the ladder, the arithmetic below them, and models by name."""
