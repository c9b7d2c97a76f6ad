"""Loops: fit, evaluate, predict."""
