"""A model over many devices by tensor, pipeline and data parallelism: ``pshard shard``."""
