"""`hyperpod-lora generate`: ask a merged model, or an adapter, one question."""

from __future__ import annotations

from pathlib import Path

import click

from steps.plain_text import visible


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("prompt")
@click.option(
    "--base",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Base model's folder, where MODEL is an adapter.",
)
@click.option("--system", default="", help="System turn before the prompt.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Longest answer.")
def generate(model: Path, prompt: str, base: Path | None, system: str, max_new_tokens: int) -> None:
    """Answer PROMPT with the model in MODEL: a merged folder, or an adapter with --base."""
    from steps.evaluate.chat import answer

    answer(
        model,
        prompt,
        base=base,
        system=system,
        max_new_tokens=max_new_tokens,
        stream=lambda text: click.echo(visible(text), nl=False),
    )
    click.echo()
