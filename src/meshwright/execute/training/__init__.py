"""Whole training runs: data, ranks, records, and one process beside them."""
