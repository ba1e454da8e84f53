"""What happens at which share of a run."""

PICTURES = (0.05, *(tenth / 10 for tenth in range(1, 10)))
"""Shares of the run after which the model is saved and a grid drawn; the end is one more. Later, where these pictures
would take more than DRAWING of the time."""
