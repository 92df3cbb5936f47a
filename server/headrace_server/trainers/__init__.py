"""Trains models: the families, the loop they share, and the process it runs in.

Torch-free, for everybody: `catalogue`, `family`, `recipe`, `reports`, `job_file`, and each family's `parameters`.
Only in a trainer process, with torch: `process` and all that it imports.
"""
