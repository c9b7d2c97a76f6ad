"""Handwritten digits, read by a small convolutional network."""
