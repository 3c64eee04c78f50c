"""Runs a module on workers and brings its result home, through failures. Knows jobs, nothing of LoRA and of no platform's API.

`supervise.supervise` is the entry point; its caller hands in a launcher.

- Values and decisions, pure: `job` (what runs), `snapshot` (what a launcher saw), `progress` (how far, which deadline),
  `classify` (what happened), `retry` (what follows), `history`, `goodput` (where the time went), `messages`.
- What acts: `supervise` (all attempts), `attempt` (watches one), `logbook` (history on disk), `lease` (who may act),
  `cancel` (a request to end), `outcome` (evidence, results).
- This machine: `local_launcher` starts attempts here, `local_jobs` finds what runs here.
- `agent/` runs beside the workers, on every node of a cluster and here: it starts torchrun and ends it.
"""
