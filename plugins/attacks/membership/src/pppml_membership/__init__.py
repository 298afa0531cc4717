"""Membership inference for pppml: RMIA and LiRA; see README.md."""
