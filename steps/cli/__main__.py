"""`python -m steps.cli`: the command where the project is not installed."""

from steps.cli.main import main

main(prog_name="python -m steps.cli")
