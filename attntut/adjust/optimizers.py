"""Optimizers, and what is done to their steps."""
