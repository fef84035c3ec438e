"""One stage on one rank: forward and backward of its micro-batches."""
