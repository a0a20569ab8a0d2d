"""Network parts and interfaces that the families of models share."""
