"""Runs torchrun's command line as a job's wrapper does, and leaves a word in the file that WRAPPER_NOTES names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

code = subprocess.run(sys.argv[1:], check=False).returncode
Path(os.environ["WRAPPER_NOTES"]).write_text(f"torchrun ended with {code}: {' '.join(sys.argv[1:4])}")
sys.exit(code)
