"""Evaluations of frozen or fine-tuned backbones."""
