"""The commands `train.py` and `sample.py`, and what all commands share: flags, exit codes, their own process."""
