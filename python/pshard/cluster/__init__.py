"""Devices, their hosts and the links between them: as found here, listed on a command line, or written by hand."""
