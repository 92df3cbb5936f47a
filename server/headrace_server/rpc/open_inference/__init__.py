"""Stubs of the Open Inference Protocol, made from its contract; see protos/README.md for why they lie here."""
