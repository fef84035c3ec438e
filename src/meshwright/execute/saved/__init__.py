"""What outlives a run: checkpoints and files of weights, read by any plan."""
