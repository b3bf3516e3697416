"""Several hosts: joining, watching, signals."""
