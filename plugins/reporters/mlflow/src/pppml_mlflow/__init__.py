"""MLflow reporter of pppml."""
