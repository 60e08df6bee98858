"""What others see: MLflow runs, registered models, strategies with their provenance."""
