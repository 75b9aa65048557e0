"""A machine and its speed: reference figures, profile files, and the form in which the core prices."""
