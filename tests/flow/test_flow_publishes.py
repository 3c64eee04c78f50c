"""The publish step of a whole run: a model that passes lies in the bucket and in the artifacts; `resume` changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.flow.flow_harness import Place, run_id_of
from tests.publish.conftest import aws, bucket, store

__all__ = ["aws", "bucket", "store"]  # fixtures

pytestmark = [pytest.mark.whole, pytest.mark.timeout(500)]

PASSING = {"score": "scores:half", "max_rows": 8, "max_loss_rows": 2, "min_improvement": -0.5, "max_new_tokens": 2}


def test_a_model_that_passes_is_handed_on(place: Place, aws: dict[str, str], bucket: Any) -> None:
    (place.folder / "scores.py").write_text("def half(answer, reference):\n    return 0.5\n")
    there = Place(place.folder, {**place.environment, **aws, "PYTHONPATH": str(place.folder)})
    there.write_config(evaluation=PASSING, publish={"s3": "s3://team/models", "what": "both"})
    done = there.call(there.run_words("--max-steps", "3"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "published: s3, s3://team/models/tiny-orders/" in done.stdout
    run_id = run_id_of(done.stdout)
    published = there.artifact(run_id, "publish", "published")
    assert there.artifact(run_id, "publish", "lineage")["published"]["s3"] == published["addresses"]["s3"]
    key = f"{published['addresses']['s3'].removeprefix('s3://team/')}/manifest.json"
    manifest = json.loads(bucket.get_object(Bucket="team", Key=key)["Body"].read())
    assert manifest["run"] == f"LoraFlow/{run_id}"
    assert {"merged/config.json", "adapter/adapter_config.json"} <= set(manifest["files"])
    text = (Path(there.artifact(run_id, "merge", "merged")["path"]) / "lineage.json").read_text()
    assert json.loads(text)["published"]["digest"] == published["digest"]
    assert aws["AWS_SECRET_ACCESS_KEY"] not in done.stdout + done.stderr + text

    before = {item["Key"]: item["LastModified"] for item in bucket.list_objects_v2(Bucket="team")["Contents"]}
    resumed = there.call(there.command("resume", "publish", "--origin-run-id", run_id))
    assert resumed.returncode == 0, resumed.stdout[-3000:] + resumed.stderr[-3000:]
    assert f"equal files were published by LoraFlow/{run_id}" in resumed.stdout
    assert {item["Key"]: item["LastModified"] for item in bucket.list_objects_v2(Bucket="team")["Contents"]} == before
