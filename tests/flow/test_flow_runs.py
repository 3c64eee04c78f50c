"""The flow through its front door, with a tiny random model: what it leaves behind, and what it says."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.flow.flow_harness import FLOW, PROJECT, Place, kill_and_resume, run_id_of

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def finished(module_place: Place) -> tuple[Place, str, str]:
    """One whole run, shared by the tests that only look at it: place, run id, output."""
    module_place.write_config()
    done = module_place.call(module_place.run_words())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return module_place, run_id_of(done.stdout), done.stdout


def test_a_run_says_what_was_learned_and_what_to_type_next(finished: tuple[Place, str, str]) -> None:
    _, _, output = finished
    for words in (
        "plan: 12 steps",
        "step 12/12 | loss",
        "loss on held-out samples",
        "adapter  ",
        "/evaluate --id evaluation",
        "generate",
    ):
        assert words in output


def test_artifacts_are_plain_dicts_that_name_their_parents(finished: tuple[Place, str, str]) -> None:
    place, run_id, _ = finished
    base = place.artifact(run_id, "start", "base")
    prepared = place.artifact(run_id, "prepare", "prepared")
    adapter = place.artifact(run_id, "train", "adapter")
    merged = place.artifact(run_id, "merge", "merged")
    report = place.artifact(run_id, "evaluate", "report")
    assert prepared["parents"]["base"] == base["digest"]
    assert adapter["parents"] == {"base": base["digest"], "prepared": prepared["digest"]}
    assert merged["parents"] == {"base": base["digest"], "adapter": adapter["digest"]}
    assert report["parents"]["merged"] == merged["digest"]
    for record in (base, prepared, adapter, merged, report):
        assert type(record) is dict
        assert record["schema"].startswith("hyperpod-lora/")


def test_the_adapter_itself_is_kept_in_the_datastore(finished: tuple[Place, str, str]) -> None:
    place, run_id, _ = finished
    adapter = place.artifact(run_id, "train", "adapter")
    files = place.artifact(run_id, "train", "adapter_files")
    on_disk = Path(adapter["path"], "adapter_model.safetensors").read_bytes()
    assert hashlib.sha256(files["adapter_model.safetensors"]).digest() == hashlib.sha256(on_disk).digest()
    assert "adapter_config.json" in files


@pytest.mark.timeout(500)
def test_a_flow_killed_whole_goes_on_with_resume_and_ends_with_equal_bits(
    finished: tuple[Place, str, str], place: Place
) -> None:
    straight, run_id, _ = finished
    place.write_config()
    expected = Path(straight.artifact(run_id, "train", "adapter")["path"], "adapter_model.safetensors").read_bytes()
    assert kill_and_resume(place) == expected


def test_the_merged_folder_says_where_it_comes_from(finished: tuple[Place, str, str]) -> None:
    place, run_id, _ = finished
    merged = Path(place.artifact(run_id, "merge", "merged")["path"])
    lineage = json.loads((merged / "lineage.json").read_text())
    assert lineage["run"] == f"LoraFlow/{run_id}"
    assert lineage["base"]["digest"] == place.artifact(run_id, "start", "base")["digest"]
    assert len(lineage["code"]["digest"]) == 64
    assert "adapter.identity" in (merged / "README.md").read_text()


PIPELINE = """
from transformers import pipeline
talk = pipeline("text-generation", ".")
print(talk([{"role": "user", "content": "Hello"}], max_new_tokens=3)[0]["generated_text"][-1]["role"])
print(talk.model.generate(**talk.tokenizer("Hello", return_tensors="pt"), max_new_tokens=3).shape[0])
"""


def test_what_is_handed_on_works_by_the_usual_snippets(finished: tuple[Place, str, str]) -> None:
    """The README's own example in both folders, `pipeline` on the merged one, and `generate` on what the tokenizer gives."""
    place, run_id, _ = finished
    merged = Path(place.artifact(run_id, "merge", "merged")["path"])
    adapter = Path(place.artifact(run_id, "train", "adapter")["path"])
    for folder in (adapter, merged):
        assert {"README.md", "lineage.json", "tokenizer_config.json", "chat_template.jinja"} <= {
            path.name for path in folder.iterdir()
        }
        code = re.search(r"^```python\n(.*?)^```$", (folder / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
        assert code is not None
        run_plainly(place, folder, code[1])
    assert run_plainly(place, merged, PIPELINE).split() == ["assistant", "1"]


def run_plainly(place: Place, folder: Path, code: str) -> str:
    """What Python prints in a folder, without this project in reach and without a hub."""
    environment = {**place.environment, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [place.command()[0], "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_both_cards_are_pages_of_our_own_without_a_script(finished: tuple[Place, str, str]) -> None:
    place, run_id, _ = finished
    cards = [path for path in place.folder.rglob("*.html") if "mf.cards" in path.parts and "runtime" not in path.parts]
    texts = {path.parts[path.parts.index("steps") + 1]: path.read_text("utf-8") for path in cards}
    assert sorted(texts) == ["evaluate", "train"]
    live = [json.loads(path.read_text()) for path in place.folder.rglob("*training*.data.json")]
    assert [(item["reload_token"], "Where the time went" in item["data"]["body"]) for item in live] == [("final", True)]
    for text in texts.values():
        assert "<script" not in text
    for words in ("Training is over.", "Where the time went", f"LoraFlow/{run_id}", "12 / 12"):
        assert words in texts["train"]
    report = place.artifact(run_id, "evaluate", "report")
    assert f"{report['base_score']:.1%} → {report['tuned_score']:.1%}" in texts["evaluate"]
    assert "Where this model comes from" in Path(report["path"], "report.html").read_text("utf-8")


def test_the_run_is_tagged(finished: tuple[Place, str, str]) -> None:
    place, run_id, _ = finished
    told = place.call(place.command("tag", "list", "--run-id", run_id))
    for tag in ("model:tiny", "dataset:orders", "method:lora", "score:"):
        assert tag in told.stdout + told.stderr


def test_a_dry_run_stops_after_the_plan(finished: tuple[Place, str, str]) -> None:
    place, _, _ = finished
    done = place.call(place.run_words("--dry-run", "True"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tokens/s of the last time" in done.stdout
    assert "dry run: nothing was trained" in done.stdout
    assert not list(place.run_directory(run_id_of(done.stdout)).glob("train-*/attempts"))


def test_a_continued_run_with_other_settings_is_refused_by_name(finished: tuple[Place, str, str]) -> None:
    place, run_id, _ = finished
    done = place.call(place.run_words("--continue-from", run_id, "--learning-rate", "0.5"))
    assert done.returncode != 0
    assert "--learning-rate: that run has 0.01, this one 0.5" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_mistake_in_the_config_ends_the_command_with_every_problem(place: Place) -> None:
    place.write_config(retry={"max_attempts": 0, "delay": 3})
    done = place.call(place.run_words())
    assert done.returncode != 0
    for text in ("retry.max_attempts: must be >= 1, got 0", "retry.delay: unknown setting", "did you mean 'delay_s'"):
        assert text in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_the_flow_reads_its_default_config_from_any_folder(place: Place) -> None:
    done = place.call(place.command("show"))
    assert done.returncode == 0, done.stderr
    inside = subprocess.run(
        [place.command()[0], FLOW.name, "show"],
        cwd=FLOW.parent,
        env=place.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert inside.returncode == 0, inside.stderr


def test_the_code_package_holds_steps_and_config_and_runs_elsewhere(place: Place, tmp_path: Path) -> None:
    archive = tmp_path / "package.tar.gz"
    saved = place.call(place.command("package", "save", str(archive)))
    assert saved.returncode == 0, saved.stderr
    elsewhere = tmp_path / "elsewhere"
    with tarfile.open(archive) as package:
        package.extractall(elsewhere, filter="data")
    steps = [path for suffix in ("py", "html", "css") for path in (PROJECT / "steps").rglob(f"*.{suffix}")]
    for source in (*steps, *(PROJECT / "config").rglob("*.yaml")):
        assert (elsewhere / source.relative_to(PROJECT)).read_bytes() == source.read_bytes()
    environment = {**place.environment, "PYTHONPATH": f"{elsewhere / '.mf_code'}:{elsewhere}"}
    code = "import steps.settings.catalog as p, steps.flow.decorator; print(p.__file__, *p.preset_names('models'))"
    told = subprocess.run(
        [place.command()[0], "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
    )
    assert str(elsewhere) in told.stdout, told.stderr
    assert "smollm2-135m" in told.stdout


@pytest.mark.timeout(300)
def test_the_page_on_python_runs_as_it_stands(finished: tuple[Place, str, str]) -> None:
    place, _, _ = finished
    blocks = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "python.md").read_text(), flags=re.DOTALL)
    code = "\n".join(blocks).replace("flows/lora_flow.py", str(FLOW))
    done = place.call([sys.executable, "-c", code])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "merged model: " in done.stdout
    assert re.search(r"[1-9] adapter\(s\) from this data", done.stdout)
    assert "successful 60 samples prepared" in done.stdout
