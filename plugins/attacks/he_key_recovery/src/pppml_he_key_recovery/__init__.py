"""Recovery of a CKKS secret key from published decryptions for pppml; see README.md."""
