"""Re-identification among candidate images for pppml, by the likelihood of what was seen; see README.md."""
