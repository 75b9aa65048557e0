"""Running a plan on this machine, and holding what was predicted against what was measured: ``pshard run``."""
