"""The one training loop, its state, and what it writes."""
