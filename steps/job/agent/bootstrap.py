# First program of a pod: unpacks the run's code, checked against its digest, and becomes the program named after it.
#     python -c <this text> ARCHIVE SHA256 MODULE ARGUMENTS...
# Nothing but the standard library is there yet. What is printed last stands in the pod's termination message.
import hashlib
import os
import sys
import tarfile
import tempfile
from pathlib import Path

archive, expected, module, arguments = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
try:
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
except OSError as error:
    print(f"the run's code {archive} cannot be read ({error.strerror}): is the claim mounted there, on every node?")
    sys.exit(66)
if found != expected:
    print(f"the run's code {archive} has SHA-256 {found}, expected {expected}: it was changed; run again")
    sys.exit(66)
root = tempfile.mkdtemp(prefix="hyperpod-lora-")
with tarfile.open(archive) as packed:
    packed.extractall(root, filter="data")
inherited = os.environ.get("PYTHONPATH", "")
os.environ["PYTHONPATH"] = f"{root}{os.pathsep}{inherited}" if inherited else root
os.execv(sys.executable, [sys.executable, "-u", "-m", module, *arguments])
