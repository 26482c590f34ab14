"""Wire dialects: JSON in, JSON and events out. Nothing below this package knows HTTP."""
