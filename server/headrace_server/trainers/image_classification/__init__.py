"""Trains networks over images, each of one class."""
