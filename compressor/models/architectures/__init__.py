"""One module for each architecture, without torch: what follows from a config alone.

`compressor.models.facts` calls them, and lists at `_MODULES` what each name in them means.
"""
