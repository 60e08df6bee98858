"""Prompts and real images."""
