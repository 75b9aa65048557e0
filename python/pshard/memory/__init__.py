"""What a launch takes of every memory, to the byte, and what ``--fit`` makes of it."""
