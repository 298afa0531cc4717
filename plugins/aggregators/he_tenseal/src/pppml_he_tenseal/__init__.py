"""Additively homomorphic encryption of whole vectors with TenSEAL: BFV and CKKS of Microsoft SEAL."""
