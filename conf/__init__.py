"""Hydra configuration: YAML only."""
