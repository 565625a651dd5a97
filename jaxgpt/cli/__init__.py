"""The commands `train.py` and `sample.py`: flags, exit codes, and what a command does to its own process."""
