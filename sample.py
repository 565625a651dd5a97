"""Write text with a trained GPT: `python sample.py --tokens 500`, `python sample.py --help`."""

import sys

from jaxgpt.cli import sample

if __name__ == "__main__":
    sys.exit(sample())
