"""A run's folder, its checkpoints, what a person sees of it, and the trained model in it."""
