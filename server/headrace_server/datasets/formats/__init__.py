"""How contents are laid out: one module for each format, to check and to read it."""
