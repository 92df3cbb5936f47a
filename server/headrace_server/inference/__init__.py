"""The predict path: the engine, its batchers and lanes, and the versions that are loaded."""
