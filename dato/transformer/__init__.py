"""A diffusion transformer as the model that follows a strategy."""
