"""Runs a launcher of several processes, torch's or Accelerate's, that ends with our own process.

`python -m compressor.launched torch.distributed.run …` is `python -m torch.distributed.run …`; but
a launcher that waits for other machines would wait on after the process that started it was killed.
"""

from __future__ import annotations

import runpy
import sys

from compressor.processes import end_with_parent


def main() -> None:
    """Run the module that the first argument names, with the others."""
    end_with_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
