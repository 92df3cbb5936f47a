"""Headrace: trains models, lets you watch, and serves what it trained, over one gRPC contract."""

from importlib.metadata import version

__version__ = version("headrace-server")
