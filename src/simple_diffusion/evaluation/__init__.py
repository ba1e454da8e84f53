"""Scores of samples against data."""
