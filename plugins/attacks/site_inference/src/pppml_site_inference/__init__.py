"""Which hospital an image is from, for pppml; see README.md."""
