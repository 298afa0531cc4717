"""Homomorphic sums at the server: the sites share one key, the server adds ciphertexts."""
