"""`Options`, the flow's Parameters: what to train. The words of `python flows/lora_flow.py run --help`.

A dataclass, since every command of Metaflow reads them, `--help` too, and pydantic takes as long to import as Metaflow's half; it
does the checking, in `config.parse_options`, from what stands here.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from annotated_types import DocInfo, Ge, Le, Lt, doc

AUTO = "auto"

Method = Literal["lora", "rslora", "dora"]
Scheduler = Literal["cosine", "linear", "constant"]
Precision = Literal["bf16", "fp32"]
Quantization = Literal["none", "4bit"]
Sharding = Literal["ddp", "fsdp"]
Dtype = Literal["bf16", "fp16", "fp32"]
DTYPES: dict[str, str] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""Ours → torch's name, which stands in config.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """'auto' or 0 means "from the preset"; Argo would turn a None into the word null."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}

    model: Annotated[str, doc("A preset (also a YAML file of yours), a hub id, a local folder or an s3:// prefix.")] = (
        "smollm2-135m"
    )
    dataset: Annotated[
        str,
        doc(
            "A preset (also a YAML file of yours), a data file, a folder of such, an s3:// prefix or a hub id; "
            "several with their weights: `a.jsonl:0.7,b.jsonl:0.3`."
        ),
    ] = "orders"
    columns: Annotated[
        str, doc("Which column is what: `prompt=text,answer=label`; auto: from the data preset, else detected.")
    ] = AUTO
    max_steps: Annotated[int, Ge(0), doc("Optimizer steps; 0: from `epochs`, or the preset when that is 0 too.")] = 0
    epochs: Annotated[
        float, Ge(0), Le(1000), doc("Passes over the training rows; 0: from `max_steps`, or the preset.")
    ] = 0.0
    max_rows: Annotated[int, Ge(0), doc("Rows used of the data set, drawn by the seed; 0: all.")] = 0
    chat_template: Annotated[
        str,
        doc("A Jinja file in the place of the tokenizer's chat template; auto: from the preset, else the tokenizer's."),
    ] = AUTO
    chat_template_kwargs: Annotated[
        str,
        doc(
            """JSON object of arguments for the chat template, as '{"enable_thinking": false}'; auto: from the preset."""
        ),
    ] = AUTO
    learning_rate: Annotated[float, Ge(0), Le(1), doc("Peak learning rate of AdamW; 0: from the preset.")] = 0.0
    scheduler: Annotated[Literal["auto", Scheduler], doc("Shape of the learning rate after warm-up; auto: cosine.")] = (
        "auto"
    )
    warmup_ratio: Annotated[
        float, Ge(0), Lt(1), doc("Share of the steps over which the learning rate rises from 0.")
    ] = 0.1
    weight_decay: Annotated[float, Ge(0), Le(1), doc("AdamW's decoupled weight decay.")] = 0.0
    max_grad_norm: Annotated[float, Ge(0), doc("Gradients are clipped to this norm; 0: not at all.")] = 1.0
    method: Annotated[Literal["auto", Method], doc("PEFT method; auto: lora.")] = "auto"
    lora_rank: Annotated[int, Ge(0), Le(1024), doc("Rank r; 0: from the preset.")] = 0
    lora_alpha: Annotated[float, Ge(0), doc("Scale numerator; 0: twice the rank, 8 for rslora.")] = 0.0
    lora_dropout: Annotated[float, Ge(0), Lt(1), doc("Dropout before lora_A.")] = 0.0
    lora_targets: Annotated[str, doc("`all-linear`, or module names separated by commas; auto: from the preset.")] = (
        AUTO
    )
    init_adapter: Annotated[str, doc("A PEFT adapter folder to go on from, with its settings; auto: fresh.")] = AUTO
    sequence_length: Annotated[int, Ge(0), doc("Tokens in a row; 0: from the preset.")] = 0
    packing: Annotated[
        Literal["auto", "on", "off"],
        doc("Several samples in one row; auto: from the data preset, else on where the model keeps them apart."),
    ] = "auto"
    global_batch: Annotated[int, Ge(0), doc("Rows per optimizer step, over all processes; 0: from the preset.")] = 0
    micro_batch: Annotated[int, Ge(0), doc("Rows per forward pass on one process; 0: from the preset.")] = 0
    gradient_checkpointing: Annotated[
        Literal["auto", "on", "off"], doc("Recompute activations to save memory; auto: from the model preset.")
    ] = "auto"
    precision: Annotated[Literal["auto", Precision], doc("auto: bf16 where the device is fast at it, else fp32.")] = (
        "auto"
    )
    quantization: Annotated[
        Literal["auto", Quantization], doc("4bit: the frozen base in NF4 through bitsandbytes; auto: none.")
    ] = "auto"
    sharding: Annotated[Literal["auto", Sharding], doc("fsdp: shard the base model over processes; auto: ddp.")] = (
        "auto"
    )
    processes: Annotated[
        int,
        Ge(0),
        Le(4096),
        doc("Worker processes per node; 0: every NeuronCore of the cluster's instance type, elsewhere 1."),
    ] = 0
    seed: Annotated[
        int, Ge(0), Lt(2**31), doc("Random seed of the split, the order, the adapter's start and dropout.")
    ] = 42
    validation_fraction: Annotated[
        float,
        Ge(0),
        Lt(1),
        doc("Share of the samples held out; 0: a tenth, but 128 to 512 samples and at most a fifth."),
    ] = 0.0
    merge_dtype: Annotated[
        Literal["auto", Dtype],
        doc("Of the merged weights; auto: as the Config's merge.dtype says, else the base model's own."),
    ] = "auto"
    continue_from: Annotated[
        str,
        doc(
            "A run id or run directory that is gone on with: its data, checkpoints and, where not given, options; auto: none."
        ),
    ] = AUTO
    dry_run: Annotated[bool, doc("Stop after the plan, before training.")] = False


OPTIONS = tuple(field.name for field in fields(Options))
"""Their names."""


GROUPS = {
    "Data": ("dataset", "columns", "max_rows", "validation_fraction", "sequence_length", "packing"),
    "Model": ("model", "chat_template", "chat_template_kwargs", "precision", "quantization", "merge_dtype"),
    "LoRA": ("method", "lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "init_adapter"),
    "Training": (
        *("max_steps", "epochs", "global_batch", "learning_rate", "scheduler", "warmup_ratio", "weight_decay"),
        *("max_grad_norm", "seed"),
    ),
    "Machine": ("processes", "micro_batch", "gradient_checkpointing", "sharding"),
    "Run": ("continue_from", "dry_run"),
}
"""The options in the order and under the headings of `hyperpod-lora run --help`; each stands in one of them."""


def choices_of(name: str) -> str:
    """The words that an option takes, as `lora|rslora|dora`; empty where it takes anything."""
    hint = get_type_hints(Options)[name]
    return "|".join(_words(hint)) if get_origin(hint) is Literal else ""


def _words(hint: Any) -> tuple[str, ...]:
    """The values of a Literal, those of a Literal in it included."""
    return tuple(str(item) for item in get_args(hint))


OF_THE_COMMAND = ("continue_from", "dry_run")
"""Options that say what one command does, and nothing of the training."""


def flag(name: str) -> str:
    """An option as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def help_of(name: str) -> str:
    """What an option does."""
    hint = get_type_hints(Options, include_extras=True)[name]
    return next(item.documentation for item in hint.__metadata__ if isinstance(item, DocInfo))
