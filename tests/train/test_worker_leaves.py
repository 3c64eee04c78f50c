"""A rank that has failed leaves at once: no exit handler of a library, waiting for ranks that are gone, holds it back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from steps.protocol.failure_class import FailureClass
from steps.protocol.failure_record import read_records
from tests.train.neuron.test_layout import make_spec

ROOT = Path(__file__).parents[2]
HANDLER = """
import atexit, threading, time
atexit.register(time.sleep, 600)
threading.Thread(target=time.sleep, args=(600,)).start()
"""


def test_an_exit_handler_or_a_thread_that_never_ends_holds_no_rank_back(tmp_path: Path) -> None:
    (tmp_path / "usercustomize.py").write_text(HANDLER)
    spec = make_spec(directory=str(tmp_path / "train"), prepared_path=str(tmp_path / "gone"), backend="torch")
    spec.place.path.mkdir()
    spec.place.spec.write_text(json.dumps(spec.to_dict()))
    program = "import usercustomize, runpy; runpy.run_module('steps.train.worker', run_name='__main__', alter_sys=True)"
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", program, str(spec.place.spec), "--attempt", "1"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == FailureClass.STORAGE.exit_code, done.stderr
    (record,) = read_records(spec.place.attempt(1))
    assert str(tmp_path / "gone") in record.message
