"""`compressor gc`: what no run names any more leaves the store. Nothing is made here."""
