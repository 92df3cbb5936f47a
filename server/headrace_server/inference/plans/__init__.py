"""Plans: the ways to run a version that this machine has, measured against each other, and the one that is chosen."""
