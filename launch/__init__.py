"""The ``dato`` command: configuration in, a search out."""
