"""What the commands see and how it is shown: run directories, jobs on a cluster, logs, manifests."""
