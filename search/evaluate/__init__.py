"""One strategy on one device: pipelines, images, shards of measurements, latency."""
