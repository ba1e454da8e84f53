"""Explanations and exercises."""
