"""`python -m sightline.cli`: the same as the `sightline` command."""

import sys

from sightline.cli import main

sys.exit(main())
