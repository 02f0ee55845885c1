"""What stands behind scripts/run and scripts/test. Standard library only: it runs before anything is installed."""
