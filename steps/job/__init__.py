"""The job room: runs a module on workers and brings it home. Knows jobs, nothing of LoRA.

`supervise.supervise` is its door; the decorator hands it a launcher.
Pure, values in and values out: status, deadlines, failures, retry, account, neuron_codes, words, history, job.
Thin shell around them: supervise, attempt, lease, evidence, publish; here on one machine: local, keeper, rank, processes,
leftovers.
"""
