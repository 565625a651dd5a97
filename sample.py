"""Write text with a trained GPT: `python sample.py --tokens 500`, `python sample.py --help`."""

import sys

try:
    from jaxgpt.cli.sample import main
except KeyboardInterrupt:  # before the command is there to be stopped
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
