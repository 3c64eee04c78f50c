"""Typed settings: *where and how* to run (`Settings`, from YAML). *What* to train is `options.Options`.

`parse_settings` and `parse_options` turn untyped input into either, and raise one ConfigError with every mistake in it.
`resolve.resolve` merges both with the presets. Nothing here reads a file or the environment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from steps.errors import ConfigError, Mistakes, Problem
from steps.settings.cluster import Cluster, Deployment, cluster_problems
from steps.settings.options import Dtype, Options
from steps.settings.publish import Publish
from steps.settings.reporting import Reporting
from steps.settings.section import Section, suggest, validate


class Storage(Section):
    """Where files go."""

    root: str = ".lora"
    """Run directories; relative to the project's folder (installed: ~/hyperpod-lora), whatever the working directory."""
    cache: str = "~/.cache/hyperpod-lora"
    """Converted and downloaded base models, shared by all runs."""
    min_free_gib: float = Field(default=1.0, ge=0)
    """Free space, in GiB, that has to be left after each stage has written its files."""


class Launcher(Section):
    """What runs the workers."""

    kind: Literal["local", "pytorchjob"] = "local"
    """`local`: processes on this machine; `pytorchjob`: a Kubeflow PyTorchJob on the cluster that `cluster` describes."""
    backend: Literal["torch", "neuron", "torchneuron"] = "torch"
    """`torch`: CPUs and GPUs; `neuron`: Trainium through PyTorch/XLA; `torchneuron`: Trn2 through TorchNeuron, a beta."""
    tensor_parallel: int = Field(default=1, ge=0)
    """Processes that share each layer of one replica; neuron only. 0: chosen, by steps/train/neuron/planning/layout.py."""
    pipeline_parallel: int = Field(default=1, ge=1)
    """Pipeline stages that one replica's layers are spread over; neuron only, Llama and Qwen 3 only. 1: none."""
    compile_cache: str = ""
    """Compiled graphs: a shared folder, copied to each node and back, or (neuron) an s3:// prefix; empty: none; not for torch."""
    precompile: bool = False
    """A first job of a few steps collects all graphs and compiles them side by side; needs `compile_cache`; neuron only."""
    threads_per_process: int = Field(default=0, ge=0)
    """CPU threads of each worker; 0: the cores divided by the processes. Equal bits need equal threads."""


class Prices(Section):
    """What the nodes cost, for the plan and the account."""

    node_hour: float = Field(default=0.0, ge=0)
    """One node for one hour; 0: say nothing of cost."""
    currency: str = "USD"
    """Printed beside a cost."""


class Limits(Section):
    """What a run's training may use of the nodes; at 80 % a person is told, at 100 % the workers save and stop."""

    node_hours: float = Field(default=0.0, ge=0)
    """Nodes times hours, time in a queue left out; 0: no limit."""
    cost: float = Field(default=0.0, ge=0)
    """In `prices.currency`, at `prices.node_hour`; 0: no limit."""


class Prepare(Section):
    """The data."""

    unusable_rows: Literal["skip", "refuse"] = "skip"
    """Rows without a usable conversation: `skip` counts and names them, `refuse` fails when there is one."""


class Deadlines(Section):
    """How long each phase may take, in seconds, before the attempt is ended and classed."""

    queue_s: float = Field(default=7 * 86400.0, gt=0)
    """Waiting for capacity, on a cluster; counts against no other deadline."""
    startup_s: float = Field(default=120.0, gt=0)
    """Submission until every worker has started."""
    model_load_s: float = Field(default=1800.0, gt=0)
    """Started until the model is loaded."""
    first_step_s: float = Field(default=3600.0, gt=0)
    """Model loaded until the first step is done (compilation included)."""
    compiling_steps: int = Field(default=1, ge=1)
    """Steps at the start of an attempt that may each take `first_step_s`; on Neuron the second step is another graph."""
    step_gap_s: float = Field(default=300.0, gt=0)
    """Least time without a new step that counts as a hang."""
    step_gap_factor: float = Field(default=20.0, ge=1)
    """A hang is also at least this many times the run's own median step."""
    checkpoint_s: float = Field(default=900.0, gt=0)
    """One save."""
    validation_s: float = Field(default=3600.0, gt=0)
    """One validation."""
    exit_s: float = Field(default=120.0, gt=0)
    """Training finished until the last worker has gone."""
    grace_s: float = Field(default=60.0, gt=0)
    """Between asking workers to stop (they save) and killing them."""
    deletion_s: float = Field(default=30.0, gt=0)
    """Killed (or deleted, on a cluster) until nothing of the attempt is left."""
    total_s: float = Field(default=7 * 86400.0, gt=0)
    """The whole train step, all attempts together."""


class Retry(Section):
    """When a failed attempt is followed by another (permanent failures never are)."""

    max_attempts: int = Field(default=10, ge=1)
    """Attempts in all; preemptions are not counted."""
    max_without_progress: int = Field(default=3, ge=1)
    """Attempts in a row without a new complete checkpoint that end the run."""
    delay_s: float = Field(default=5.0, ge=0)
    """Pause before the second attempt."""
    delay_factor: float = Field(default=2.0, ge=1)
    """The pause grows by this factor while there is no progress."""
    max_delay_s: float = Field(default=300.0, ge=0)
    """Longest pause."""


class Checkpoints(Section):
    """When training state is saved, and how much of it is kept."""

    every_steps: int = Field(default=0, ge=0)
    """Steps between saves; 0: a tenth of the run, between 10 and 500."""
    keep: int = Field(default=3, ge=1)
    """Complete checkpoints kept; the newest complete one is never deleted."""


class Validation(Section):
    """Loss on the held-out split while training."""

    every_steps: int = Field(default=0, ge=0)
    """Steps between validations; 0: a fifth of the run, at least 10; below 20 steps only after the last."""
    max_rows: int = Field(default=32, ge=1)
    """Held-out rows looked at each time, the same ones, at most; in short runs a sixteenth of the rows trained on, at least 8,
    unless validation decides."""
    early_stopping_patience: int = Field(default=0, ge=0)
    """Validations without a lower loss that end training; 0: never."""
    keep: Literal["last", "best"] = "last"
    """Which adapter becomes the result: the last step's, or that of the lowest validation loss."""


SCORES = ("exact_match", "json_fields", "last_number", "rouge_l")
OWN_SCORE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def _known_score(name: str) -> str:
    if name != "auto" and name not in SCORES and not OWN_SCORE.fullmatch(name):
        near = suggest(name, list(SCORES))
        raise PydanticCustomError("score", f"must be auto, {', '.join(SCORES)} or module:function{near}")
    return name


Score = Annotated[str, AfterValidator(_known_score)]


class Evaluation(Section):
    """Base and tuned model compared after training."""

    score: Score = "auto"
    """How an answer is scored; `auto`: as the data preset says, or as suits the answers; `module:function`: one's own."""
    max_rows: int = Field(default=128, ge=1)
    """Held-out samples that are generated and scored at most: 16, and twice as many as long as they cannot tell."""
    max_loss_rows: int = Field(default=32, ge=1)
    """Held-out rows whose loss is measured at most; after a short run an eighth of the rows trained on, at least 16."""
    samples: int = Field(default=10, ge=0)
    """Answers shown side by side."""
    batch_size: int = Field(default=32, ge=1)
    """Prompts generated together."""
    max_new_tokens: int = Field(default=0, ge=0)
    """Tokens that an answer may have; 0: the data preset's, else half as many again as the references' 95th percentile."""
    min_improvement: float = Field(default=0.0, ge=-1, le=1)
    """The gate: the tuned model's score must be above the base's by this, with 95 % confidence (score in 0..1)."""
    on_gate_failure: Literal["tag", "fail"] = "tag"
    """`tag` marks the run `gate:failed`, `fail` fails the evaluate step."""


class Merge(Section):
    """The merged model's files."""

    dtype: Literal["auto", Dtype] = "auto"
    """Of the merged weights, where `--merge-dtype` is not given; `auto`: the base model's own."""


class Inference(Section):
    """The merged model compiled for Neuron cores, as the last step."""

    enabled: bool = False
    """Compile it: on one node of the cluster, or where the flow runs; skipped with a reason where there is no compiler."""
    batch_size: int = Field(default=1, ge=1)
    """Sequences at a time; more than one turns continuous batching on."""
    sequence_length: int = Field(default=4096, ge=1)
    """Prompt and answer together, tokens."""
    tensor_parallel: int = Field(default=0, ge=0)
    """Cores that share the model; loading needs as many. 0: as in training."""
    dtype: Dtype = "bf16"
    """Of the compiled model; must be the merged model's."""
    instance_type: str = ""
    """That will serve it; empty: cluster.instance_type."""
    limit_s: float = Field(default=6 * 3600.0, gt=0)
    """How long the compiler may take, in seconds."""


MOVED_PRICES = {"price_per_node_hour": "node_hour", "currency": "currency"}
"""Keys of `launcher` in configs and plans of earlier versions → keys of `prices`."""


class Settings(Section):
    """The Config: where and how to run. Every field has a default; `config/local.yaml` shows them all."""

    storage: Storage = Storage()
    launcher: Launcher = Launcher()
    prices: Prices = Prices()
    limits: Limits = Limits()
    cluster: Cluster = Cluster()
    prepare: Prepare = Prepare()
    deadlines: Deadlines = Deadlines()
    retry: Retry = Retry()
    checkpoints: Checkpoints = Checkpoints()
    validation: Validation = Validation()
    evaluation: Evaluation = Evaluation()
    merge: Merge = Merge()
    inference: Inference = Inference()
    reporting: Reporting = Reporting()
    publish: Publish = Publish()
    deployment: Deployment = Deployment()
    run: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Options of `run` by name, `model: llama3.2-1b` say: defaults of whoever uses this file. The command line wins."""

    @model_validator(mode="before")
    @classmethod
    def _prices_of_earlier_configs(cls, raw: Any) -> Any:
        """They stood in `launcher`; there they are still read, where there is no section `prices`."""
        launcher = raw.get("launcher") if isinstance(raw, Mapping) else None
        if not isinstance(launcher, Mapping) or "prices" in raw:
            return raw
        moved = {name: launcher[old] for old, name in MOVED_PRICES.items() if old in launcher}
        kept = {name: value for name, value in launcher.items() if name not in MOVED_PRICES}
        return {**raw, "launcher": kept, "prices": moved} if moved else raw

    @field_validator("run", mode="before")
    @classmethod
    def _with_underscores(cls, given: object) -> object:
        """`learning-rate`, as on the command line, is `learning_rate`; a list of data sets is written as one text, as there."""
        if not isinstance(given, dict):
            return given
        named = {str(name).replace("-", "_"): value for name, value in given.items()}
        if isinstance(named.get("dataset"), list):
            named["dataset"] = json.dumps(named["dataset"], default=str)
        return named

    @property
    def is_on_cluster(self) -> bool:
        """Training runs as a PyTorchJob."""
        return self.launcher.kind == "pytorchjob"

    @property
    def detaches(self) -> bool:
        """Ctrl-C leaves the job running."""
        return self.is_on_cluster and self.cluster.detach

    @property
    def recovery_is_foreign(self) -> bool:
        """HyperPod starts failed workers again, not this project."""
        return self.is_on_cluster and self.cluster.recovery == "hyperpod"


def parse_settings(raw: object) -> Settings:
    """Build Settings from parsed YAML.

    Raises:
        ConfigError: with every unknown key, wrong type and out-of-range value, or with every contradiction.
    """
    settings = validate(Settings, {} if raw is None else raw, prefix="")
    mistakes = Mistakes()
    mistakes.look(lambda: parse_options(settings.run, prefix="run."), None)
    problems = mistakes.problems
    if settings.limits.cost and not settings.prices.node_hour:
        problems.append(Problem("limits.cost", "needs prices.node_hour: what a node costs in an hour"))
    problems += [Problem(f"publish.{name}", what) for name, what in settings.publish.problems]
    if settings.is_on_cluster:
        problems += cluster_problems(settings.cluster, root=settings.storage.root, cache=settings.storage.cache)
    if problems:
        raise ConfigError(problems)
    return settings


def parse_options(raw: Mapping[str, Any], *, prefix: str = "--") -> Options:
    """Build Options from Parameter values; mistakes are named `<prefix><option>`.

    Raises:
        ConfigError: with every value that is not allowed, named as on the command line.
    """
    return validate(Options, raw, prefix=prefix)
