"""Label counts and lesion area from updates for pppml; see README.md."""
