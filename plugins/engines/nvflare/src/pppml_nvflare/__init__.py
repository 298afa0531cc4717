"""NVFlare engine of pppml: sites at hospitals, over NVFlare Collab."""
