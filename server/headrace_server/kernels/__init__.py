"""Work on raw memory, and its face in NumPy arrays: gathering rows into a batch and scattering them back."""
