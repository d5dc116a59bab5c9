"""From artifact to traffic."""
