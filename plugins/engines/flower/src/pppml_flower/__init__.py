"""Flower engine of pppml: sites at hospitals, over Flower's Message API."""
