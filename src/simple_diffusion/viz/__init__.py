"""Images and plots: grids, curves, denoising trajectories."""
