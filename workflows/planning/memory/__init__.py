"""How much memory a training needs, and the fastest way to spread it that fits."""
