"""`compressor doctor`: what is well and what is not, in the store and around it."""
