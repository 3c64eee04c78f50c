"""The smallest worker: says when it began, leaves a result, says when it ended. `overhead` runs it under torchrun and us."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path

BEGUN_S = time.time()


def main() -> int:
    """`spec.json --attempt N`, as every worker of ours; the times go beside the spec."""
    from steps.protocol.events import EventWriter

    spec, attempt = Path(sys.argv[1]), int(sys.argv[3])
    folder = spec.parent / "writers" / "001-01" / "result"
    folder.mkdir(parents=True)
    (folder / "adapter").write_bytes(b"x")
    events = EventWriter(spec.parent / "attempts" / f"{attempt:03d}" / "events.jsonl", attempt=attempt)
    events.emit("started", 0, of=1, pid=os.getpid())
    files = {"adapter": {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}}
    events.emit("finished", 1, result="writers/001-01/result", files=files)
    (spec.parent / "times.json").write_text(json.dumps([BEGUN_S, time.time()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
