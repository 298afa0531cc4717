"""Chest CT volumes, healthy or not: a classification task for pppml."""
