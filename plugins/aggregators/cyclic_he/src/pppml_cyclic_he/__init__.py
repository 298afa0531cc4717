"""Secure sums along rings of sites, under homomorphic encryption."""
