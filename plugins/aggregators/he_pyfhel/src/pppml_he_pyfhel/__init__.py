"""Additively homomorphic encryption of whole vectors with Pyfhel: BFV, BGV and CKKS of Microsoft SEAL."""
