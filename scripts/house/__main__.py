"""`python scripts/house run …` and `python scripts/house test …`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.exit(importlib.import_module(f"house.{sys.argv.pop(1)}").main(sys.argv[1:]))
