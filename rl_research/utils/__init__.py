"""What the logger is made of: metrics, media, settings, provenance."""
