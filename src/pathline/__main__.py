"""``python -m pathline``."""

import sys

from pathline.cli import main

if __name__ == "__main__":
    sys.exit(main())
