"""This machine: its devices, where arrays live on them, and the type of the matrix products."""
