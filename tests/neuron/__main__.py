"""Run the tests of the neuron backend, or fail and say what is missing:  python -m tests.neuron [pytest's arguments]

Inside a larger run of pytest they are skipped where they cannot run. Here they are all that was asked for.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.neuron.needed import why_not


def main() -> int:
    """pytest's exit code; 2 when something is missing."""
    if reason := why_not():
        print(reason, file=sys.stderr)
        return 2
    import pytest

    return int(pytest.main(["-q", "-m", "slow", "--timeout", "1800", *sys.argv[1:], str(Path(__file__).parent)]))


if __name__ == "__main__":
    sys.exit(main())
