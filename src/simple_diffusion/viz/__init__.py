"""Pictures: grids, plots, trajectories."""
