"""`hyperpod-lora endpoint`: the lines that serve a run's model with vLLM, and a HyperPod inference endpoint for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from steps.cli.view.place import CONFIG, ROOT, place_of
from steps.cli.view.run_folders import find_run, newest
from steps.errors import ConfigError, StorageError
from steps.export.serving import Endpoint, adapter_line, endpoint_manifest, merged_line
from steps.plain_text import command


@click.command()
@click.argument("what")
@click.option("--name", default="", help="What the served model is called; without it: base model and data set.")
@click.option("--location", default="", help="Where the endpoint reads the merged model: s3://… or fsx://fs-ID/PATH.")
@click.option("--region", envvar=["AWS_REGION", "AWS_DEFAULT_REGION"], default="", help="The bucket's region.")
@click.option("--image", default="", help="Image of the model server; has the vllm command.")
@click.option("--instance-type", default="", help="Such as ml.g5.2xlarge.")
@click.option("--accelerators", default=1, show_default=True, help="Devices per replica.")
@click.option("--replicas", default=1, show_default=True, help="Servers.")
@click.option("--context", default=0, help="Tokens of prompt and answer together; without it: what the model can.")
@CONFIG
@ROOT
def endpoint(what: str, name: str, config: Path | None, root: str | None, **options: Any) -> None:
    """Print how to serve the model of WHAT: a run, or a merged folder.

    With --location it is an InferenceEndpointConfig for the HyperPod inference operator, to be applied:
    hyperpod-lora endpoint RUN --location s3://… --image … --instance-type … | kubectl apply -f -
    """
    merged, adapter = models_of(place_of(root, config).root, what)
    name = name or name_of(merged)
    if options["location"]:
        import yaml

        manifest = endpoint_manifest(Endpoint(name=name, **options))
        click.echo(yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True), nl=False)
        return
    click.echo(f"merged model\n  {merged_line(merged, name)}")
    if adapter:
        click.echo(f"adapter beside its base\n  {adapter_words(adapter, name)}")


def models_of(root: Path, what: str) -> tuple[Path, Path | None]:
    """(merged folder, adapter folder) of a run, the newest of each; of a merged folder there is no adapter.

    Raises:
        StorageError: no such run, or it has no merged model.
    """
    folder = Path(what).expanduser()
    if (folder / "merge.json").is_file():
        return folder.resolve(), None
    run = find_run(root, what)
    merged = newest(run.glob("merged-*/merge.json"))
    if merged is None:
        raise StorageError(f"{run} has no merged model; `{command('status', run)}` tells how far it is")
    return merged, newest(run.glob("train-*/adapter/adapter_config.json"))


def name_of(merged: Path) -> str:
    """`<base model>-<data set>` from the folder's lineage, as a name of an endpoint."""
    from steps.protocol.rundir import LINEAGE, read_json

    values = read_json(merged / LINEAGE)
    words = f"{values['base']['name']}-{values['data']['name']}"
    return re.sub(r"[^a-zA-Z0-9]+", "-", words).strip("-")[:63].rstrip("-") or "model"


def adapter_words(adapter: Path, name: str) -> str:
    """The line that serves the adapter, or why there is none."""
    from steps.protocol.rundir import read_json

    try:
        return adapter_line(adapter, name, read_json(adapter / "adapter_config.json"))
    except ConfigError as error:
        return "\n  ".join(str(error).splitlines())
