"""Measuring a machine: which probes run, what they found, and the profile that is made of it."""
