"""Plans parallel training."""
