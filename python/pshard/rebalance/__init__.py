"""Layers moved when measured latencies say so: ``pshard rebalance``."""
