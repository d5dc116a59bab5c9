"""How fast Tidegate is, with peers and floors beside it in the same run."""
