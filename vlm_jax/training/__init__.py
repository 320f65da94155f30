"""Recipes and the one loop that runs every stage of them."""
