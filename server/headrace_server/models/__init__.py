"""Models: the registry of versions and aliases, and what files of models say about themselves."""
