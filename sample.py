"""Write text with a trained GPT: `python sample.py --tokens 500`, `python sample.py --help`."""

import sys

from jaxgpt.cli.sample import main

if __name__ == "__main__":
    sys.exit(main())
