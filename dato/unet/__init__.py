"""A UNet2DConditionModel run by a strategy: its units, shallow calls, self-attention, and the ControlNet beside it."""
