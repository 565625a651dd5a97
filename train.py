"""Train a GPT: `python train.py`, `python train.py --preset t4`, `python train.py --help`."""

import sys

from jaxgpt.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
