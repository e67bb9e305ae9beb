"""Export to GGUF, and run it with llama.cpp."""
