"""Recipes that a config may extend: ``extends: pppml-dpresnet/dpresnet``."""
