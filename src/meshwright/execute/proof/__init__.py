"""Whether a plan can run, and whether it computes what one process computes."""
