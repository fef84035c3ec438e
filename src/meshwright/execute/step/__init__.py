"""One optimizer step of one rank: schedule, transfers, gradient sums, update."""
