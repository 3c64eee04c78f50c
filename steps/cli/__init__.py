"""The `hyperpod-lora` command: what people ask of runs, beside a run directory or from a laptop that sees only the cluster."""
