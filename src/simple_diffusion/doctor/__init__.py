"""Diagnoses of a trained model."""
