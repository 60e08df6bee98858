"""The small text-to-image model, its digits and its feature net, which make ``dato search`` run without a download."""
