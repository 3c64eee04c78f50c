"""Hands on a model that has passed the gate: files to S3 and the hub, versions to registries that point to them."""
