"""Train a GPT: `python train.py`, `python train.py --preset t4`, `python train.py --help`."""

from jaxgpt.cli.train import leave, train

if __name__ == "__main__":
    leave(train())
