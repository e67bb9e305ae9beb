"""`python -m compressor` is the `compressor` command."""

import sys

from compressor.cli.main import main

sys.exit(main())
