"""What a team replaces: their data, their model."""
