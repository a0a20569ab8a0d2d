"""Run the command line as `python -m bev_perception.cli`."""

import sys

from bev_perception.cli import main

if __name__ == "__main__":
    sys.exit(main())
