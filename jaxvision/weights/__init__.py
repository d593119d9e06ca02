"""Weights: what timm publishes, its files in and out, and tensors that have to be adapted on the way."""
