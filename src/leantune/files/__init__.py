"""Files that are read and written: YAML, JSON, records, text tables."""
