"""llama.cpp's command lines, read and written."""
