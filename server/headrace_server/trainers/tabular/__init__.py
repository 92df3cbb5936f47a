"""Trains networks over the columns of tables."""
