"""What differs between the libraries' versions: the installed ones, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from steps.library_versions import without_torch

CODE = """
import os, sys
from steps.library_versions import without_torch
without_torch(os.environ)
from transformers import AutoTokenizer
assert "torch" not in sys.modules
import torch
assert torch.ones(1).sum() == 1
"""


def test_a_process_that_needs_only_tokenizers_does_not_import_torch_and_may_do_so_later() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("USE_TORCH", "PYTHONWARNINGS")}
    told = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")


def test_what_a_person_has_set_stays() -> None:
    own = {"USE_TORCH": "1"}
    without_torch(own)
    assert own["USE_TORCH"] == "1"


def test_the_libraries_draw_no_bars_of_their_own_unless_a_person_wants_them() -> None:
    code = "import os; from steps.library_versions import without_bars; without_bars(os.environ); "
    code += "from transformers.utils import logging; print(logging.is_progress_bar_enabled())"
    for own, said in (({}, "False"), ({"HF_HUB_DISABLE_PROGRESS_BARS": "0"}, "True")):
        environment = {
            name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"
        } | own
        told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert told.stdout.strip() == said
