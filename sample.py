"""Write text with a trained GPT: `python sample.py --tokens 500`, `python sample.py --help`."""

from jaxgpt.cli.train import leave, sample

if __name__ == "__main__":
    leave(sample())
