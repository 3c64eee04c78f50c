"""Base and tuned model compared on held-out samples: loss, score, answers side by side, a gate; and talking to a model."""
