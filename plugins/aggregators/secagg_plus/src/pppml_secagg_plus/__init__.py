"""``secagg-plus``: secure aggregation with masks that cancel (Bonawitz et al. 2017, Bell et al. 2020)."""
