"""What the header of a GGUF file says: nothing in it is believed before it is checked."""
