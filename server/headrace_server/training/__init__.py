"""The work of training: jobs, their queue, their workers and their histories.  Imports no torch and no gRPC."""
