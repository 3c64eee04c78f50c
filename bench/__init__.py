"""Measurements against what one would use instead, side by side in one run. `make bench`, or `python -m bench merge prepare`."""
