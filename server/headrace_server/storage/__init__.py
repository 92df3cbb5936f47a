"""Where bytes live: whole objects under keys."""
