"""Train a GPT: `python train.py`, `python train.py --preset t4`, `python train.py --help`."""

import sys

try:
    from jaxgpt.cli.train import main
except KeyboardInterrupt:  # before the command is there to be stopped
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
