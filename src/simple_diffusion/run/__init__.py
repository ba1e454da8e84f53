"""A training run and its folder. Imports nothing heavy."""
