"""The package as `pip install` puts it among others: what it asks for, and where it looks for and puts things."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
WHERE = """
from steps.flow.metaflow_internals import code_version
from steps.settings.catalog import find_model
from steps.settings.places import config_root, flow_file, home, project_root
print(config_root(), flow_file(), home(), find_model("tiny").name, *code_version(project_root()))
"""


def test_every_dependency_is_a_range_with_a_lower_bound() -> None:
    asked = PYPROJECT["project"]["dependencies"]
    assert not [item for item in asked if "==" in item]
    assert not [item for item in asked if ">=" not in item]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with this one in it, laid out as pyproject.toml says of the wheel; another has a config/ there."""
    site = tmp_path_factory.mktemp("place with blanks") / "site-packages"
    for folder in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        shutil.copytree(ROOT / folder, site / folder)
    for folder, name in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].items():
        shutil.copytree(ROOT / folder, site / name)
    (site / "config").mkdir()
    (site / "other.py").write_text("")
    return site


def run(site: Path, environment: dict[str, str], *words: str) -> str:
    environment = environment | {"PYTHONPATH": str(site), "HOME": str(site.parent / "me")}
    environment.pop("METAFLOW_DATASTORE_SYSROOT_LOCAL")
    done = subprocess.run([sys.executable, *words], cwd=site.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_an_installed_package_finds_its_own_files_and_keeps_runs_out_of_them(
    site: Path, clean_environment: dict[str, str]
) -> None:
    (site.parent / "me").mkdir(exist_ok=True)
    said = run(site, clean_environment, "-c", WHERE)
    steps, me = site / "steps", site.parent / "me"
    expected = (steps / "_config", steps / "_flows" / "lora_flow.py", me / "hyperpod-lora", "tiny", "digest")
    assert said.split("\n")[0] == " ".join(map(str, expected))


@pytest.mark.whole
def test_the_flow_of_an_installed_package_packs_what_pods_need(site: Path, clean_environment: dict[str, str]) -> None:
    (site.parent / "me").mkdir(exist_ok=True)
    flow = site / "steps" / "_flows" / "lora_flow.py"
    said = run(site, clean_environment, str(flow), "package", "list")
    for name in ("lora_flow.py", "steps/errors.py", "steps/_config/local.yaml", "steps/_config/models/tiny.yaml"):
        assert name in said
    assert (site.parent / "me" / "hyperpod-lora").is_dir()
