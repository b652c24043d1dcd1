"""``python -m actvar_cli`` is ``actvar``."""

from __future__ import annotations

import sys

from actvar_cli.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
