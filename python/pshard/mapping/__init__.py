"""Whole layers on several devices: ``pshard map``."""
